package redlock

import (
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// newNode returns one of several servers, or the only one.
func newNode(t *testing.T) (*node, *redis.Client) {
	t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t), DisableIdentity: true})
	b, err := server.Config{}.New(rdb, server.NewProcess(), rdb.Close)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return &node{Server: b}, rdb
}

// TestLeftForGood: who has given up one try can step back into the line, and who has left for good cannot, also if the
// release of that try arrives afterwards.
func TestLeftForGood(t *testing.T) {
	n, _ := newNode(t)
	r := locker.Request{Prefix: "test:", Key: locktest.Unique("k"), Owner: locker.Owner{1}, TTL: time.Minute}
	names := scripts.NamesOf(r, n.Line.Process)
	lineUp := func() error {
		_, _, err := n.lineUp(t.Context(), names, names.Tombstone, "1", false)
		return err
	}
	giveUpTry := func() {
		try := names
		try.Member = ""
		if err := n.giveBack(t.Context(), try, try.Tombstone, true, true); !errors.Is(err, locker.ErrLost) {
			t.Errorf("a try that was granted nothing is given up: %v; want ErrLost", err)
		}
	}
	giveUpTry()
	if err := lineUp(); err != nil {
		t.Error("step back into the line after one try:", err)
	}
	if err := n.giveBack(t.Context(), names, names.Tombstone, true, true); !errors.Is(err, locker.ErrLost) {
		t.Errorf("leave the line: %v; want ErrLost, as nothing was granted", err)
	}
	giveUpTry()
	if err := lineUp(); !errors.Is(err, conn.ErrGivenUp) {
		t.Errorf("step back into the line after it was left: %v; want ErrGivenUp", err)
	}
}

// TestConfirmKeepsTheToken: a token that is made the last one is kept for no shorter time than the one before.
func TestConfirmKeepsTheToken(t *testing.T) {
	ctx := t.Context()
	b, rdb := newNode(t)
	r := locker.Request{Prefix: "test:", Key: t.Name(), Owner: locker.Owner{1}, TTL: 100 * time.Hour}
	g, err := b.Acquire(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	names := scripts.NamesOf(r, b.Line.Process)
	ours, _, err := b.confirm(ctx, names, g.Token+1, 0)
	if err != nil || !ours {
		t.Fatalf("confirm: %v, %v", ours, err)
	}
	token, left := rdb.Get(ctx, names.Fence).Val(), rdb.PTTL(ctx, names.Fence).Val()
	if token != strconv.FormatUint(g.Token+1, 10) || left < 99*time.Hour {
		t.Errorf("the token is %s, kept for %v; want %d, for 100h", token, left, g.Token+1)
	}
	if err := b.Release(ctx, g); err != nil {
		t.Error(err)
	}
}
