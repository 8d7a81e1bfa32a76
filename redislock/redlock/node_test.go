package redlock

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock/internal/scripts"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// TestConfirmKeepsTheToken: a token that is made the last one is kept for no shorter time than the one before.
func TestConfirmKeepsTheToken(t *testing.T) {
	ctx := t.Context()
	rdb := redis.NewClient(&redis.Options{Addr: redistest.Address(t), DisableIdentity: true})
	b, err := server.Config{}.New(rdb, server.NewProcess(), rdb.Close)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close() }()
	r := locker.Request{Prefix: "test:", Key: t.Name(), Owner: locker.Owner{1}, TTL: 100 * time.Hour}
	g, err := b.Acquire(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	names := scripts.NamesOf(r, b.Line.Process)
	ours, _, err := (&node{Server: b}).confirm(ctx, names, g.Token+1, 0)
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
