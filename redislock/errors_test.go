package redislock_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/redislock"
)

// checkFailure checks that TryLock and Lock fail with want, and say what Redis has said.
func checkFailure(t *testing.T, l locker.Locker, key string, want error) {
	t.Helper()
	for _, err := range failures.CheckAcquires(t, l, key, want) {
		var reply redis.Error
		if err != nil && !errors.As(err, &reply) {
			t.Errorf("what Redis said is not in %v", err)
		}
	}
}

func TestWrongType(t *testing.T) {
	rdb := dial(t, redistest.Address(t))
	l := open(t, rdb)
	name := redislock.DefaultPrefix + t.Name()
	ctx := t.Context()
	rdb.HSet(ctx, name, "somebody's", "data")
	defer rdb.Del(ctx, name)
	checkFailure(t, l, t.Name(), redislock.ErrWrongType)
	if got := rdb.HGet(ctx, name, "somebody's").Val(); got != "data" {
		t.Errorf("the foreign hash was touched: %q", got)
	}

	// A companion of another type: what the script had set before it found that out is given back.
	key := t.Name() + " companion"
	names := redislock.NamesOf(redislock.DefaultPrefix, key)
	rdb.HSet(ctx, names[1], "somebody's", "data")
	defer rdb.Del(ctx, names[1])
	if _, err := l.TryLock(ctx, key); !errors.Is(err, redislock.ErrWrongType) {
		t.Errorf("TryLock: %v; want ErrWrongType", err)
	}
	eventuallyWithin(t, 5*time.Second, "nothing is left of the lock",
		func() bool { return rdb.Exists(ctx, names[0]).Val() == 0 })

	// Somebody overwrites a lock that is held: it is lost, and not theirs to delete.
	key = t.Name() + " overwritten"
	lease := mustLock(t, l, key, locker.TTL(time.Second))
	rdb.Del(ctx, redislock.DefaultPrefix+key)
	rdb.HSet(ctx, redislock.DefaultPrefix+key, "somebody's", "data")
	defer rdb.Del(ctx, redislock.DefaultPrefix+key)
	<-lease.Done()
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Err: %v; want ErrLost", err)
	}
}

func TestReadOnlyReplica(t *testing.T) {
	master := redistest.New(t, redistest.Options{})
	host, port, _ := net.SplitHostPort(master.Addr())
	replica := redistest.New(t, redistest.Options{Args: []string{"--replicaof", host, port}})
	onMaster, onReplica := dial(t, master.Addr()), dial(t, replica.Addr())
	l, stale := open(t, onMaster), open(t, onReplica)
	lease := mustLock(t, l, "held")
	eventually(t, "the lock is replicated", func() bool {
		return onReplica.Exists(t.Context(), redislock.DefaultPrefix+"held").Val() == 1
	})
	checkFailure(t, stale, "free", redislock.ErrReadOnly)
	checkFailure(t, stale, "held", redislock.ErrReadOnly) // and not ErrLocked: the replica does not decide that
	mustUnlock(t, lease)
}

func TestAuthentication(t *testing.T) {
	server := redistest.New(t, redistest.Options{Args: []string{"--requirepass", "secret"}})
	for _, password := range []string{"", "wrong"} {
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: password, DisableIdentity: true})
		defer rdb.Close()
		checkFailure(t, open(t, rdb), "k", redislock.ErrAuth)
	}
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Password: "secret"})
	defer rdb.Close()
	mustUnlock(t, mustLock(t, open(t, rdb), "k"))
}

// documentedACL returns the rules that docs/redis.md lists.
func documentedACL(t *testing.T) (rules acl) {
	t.Helper()
	source, err := os.ReadFile("../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(source), "\n## Permissions\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var code strings.Builder
	for i, part := range strings.Split(section, "```\n") {
		if i%2 == 1 {
			code.WriteString(strings.ReplaceAll(part, "\n", " "))
		}
	}
	commands := strings.Split(code.String(), "ACL SETUSER ")
	into := []struct {
		begins string
		rules  *string
	}{
		{"app on >secret ", &rules.server}, {"app ", &rules.cluster}, {"app ", &rules.replicated},
		{"app ", &rules.sentinel}, {"ops on >secret ", &rules.inspecting},
	}
	if len(commands) != 1+len(into) {
		t.Fatalf("%d commands in the documentation: %q", len(commands)-1, commands)
	}
	for i, command := range into {
		found := false
		if *command.rules, found = strings.CutPrefix(commands[1+i], command.begins); !found {
			t.Fatalf("%q does not begin with %q", commands[1+i], command.begins)
		}
	}
	return rules
}

// acl are rules for users: of a server, more of them for a cluster and for replicas, of sentinels, and for one who may
// look at locks and no more.
type acl struct{ server, cluster, replicated, sentinel, inspecting string }

func TestPermissions(t *testing.T) {
	documentedACL := documentedACL(t).server
	server := redistest.New(t, redistest.Options{})
	admin := dial(t, server.Addr())
	user := func(name, rules string) *redis.Client {
		args := []any{"acl", "setuser", name, "on", ">pw"}
		for _, rule := range strings.Fields(rules) {
			args = append(args, rule)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		rdb := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: name, Password: "pw", DisableIdentity: true})
		t.Cleanup(func() { _ = rdb.Close() })
		return rdb
	}
	t.Run("those documented are enough", func(t *testing.T) {
		const ttl = 9 * time.Second // its renewals are in time also when the machine is busy
		a, b := open(t, user("app", documentedACL), locker.TTL(ttl)), open(t, user("app", documentedACL))
		renewed := mustLock(t, a, "renewed")
		deadline := renewed.Deadline()
		eventuallyWithin(t, 2*ttl, "the lease is renewed, or lost", func() bool {
			return renewed.Deadline().After(deadline) || renewed.Err() != nil
		})
		mustUnlock(t, renewed)
		locktest.Tries(t, func() error {
			lease := mustLock(t, a, "k")
			waited := make(chan *locker.Lease, 1)
			go func() { waited <- mustLock(t, b, "k") }()
			time.Sleep(time.Second) // there was a poll, and the next one is half a second away or more
			released := time.Now()
			mustUnlock(t, lease)
			mustUnlock(t, <-waited)
			if took := time.Since(released); took >= 500*time.Millisecond {
				return fmt.Errorf("the handoff took %v: the message did not arrive", took)
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
		_, _ = a.Lock(ctx, "k")
		cancel()
	})
	for name, rules := range map[string]string{
		"nokeys":     strings.Replace(documentedACL, "~locker:*", "~other:*", 1),
		"noscripts":  strings.Replace(documentedACL, "+evalsha", "", 1),
		"nocommand":  strings.Replace(documentedACL, "+exists", "", 1),
		"nocommand2": strings.Replace(documentedACL, "+set ", "", 1),
	} {
		t.Run(name, func(t *testing.T) { checkFailure(t, open(t, user(name, rules)), "k", redislock.ErrPermission) })
	}
	t.Run("nochannel", func(t *testing.T) {
		l := open(t, user("nochannel", strings.Replace(documentedACL, "&locker:*", "", 1)))
		lease := mustLock(t, l, "k")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := l.Lock(ctx, "k"); !errors.Is(err, redislock.ErrPermission) {
			t.Errorf("Lock that has to wait: %v; want ErrPermission", err)
		}
		mustUnlock(t, lease)
	})
}

func TestOutOfMemory(t *testing.T) {
	server := redistest.New(t, redistest.Options{Args: []string{"--maxmemory", "1", "--maxmemory-policy", "noeviction"}})
	checkFailure(t, open(t, dial(t, server.Addr())), "k", redislock.ErrOutOfMemory)
}

// TestLoading talks to a server that says it is loading, as one does that has a large data set: a real one is ready
// too soon.
func TestLoading(t *testing.T) {
	addr := strangers.Serve(t, func(conn net.Conn) {
		buf := make([]byte, 1<<16)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for range strings.Count(string(buf[:n]), "*") { // one answer to each command
				_, _ = conn.Write([]byte("-LOADING Redis is loading the dataset in memory\r\n"))
			}
		}
	})
	checkFailure(t, open(t, dial(t, addr)), "k", redislock.ErrLoading)
}

func TestUnreachable(t *testing.T) {
	server := redistest.New(t, redistest.Options{})
	l := open(t, dial(t, server.Addr()), locker.TTL(2*time.Second))
	lease := mustLock(t, l, "held")
	server.Kill()
	start := time.Now()
	for _, lock := range []func(context.Context, string, ...locker.CallOption) (*locker.Lease, error){l.TryLock, l.Lock} {
		_, err := lock(t.Context(), "k")
		if err == nil || errors.Is(err, locker.ErrLocked) || errors.Is(err, locker.ErrLost) ||
			errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("with a dead server: %v", err)
		}
	}
	if took := time.Since(start); took > 6*time.Second {
		t.Errorf("two calls to a dead server took %v with a TTL of 2s", took)
	}
	<-lease.Done()
	if err := lease.Err(); !errors.Is(err, locker.ErrLost) {
		t.Errorf("Err: %v; want ErrLost", err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	eventuallyWithin(t, 10*time.Second, "a lock after the restart", func() bool {
		again, err := l.TryLock(t.Context(), "held")
		return err == nil && again.Unlock() == nil
	})
}
