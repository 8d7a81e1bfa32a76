package etcdlock_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
)

// withPasswords starts a server that asks for passwords, and returns who may do everything there.
func withPasswords(t *testing.T) (*etcdtest.Cluster, admin) {
	t.Helper()
	cluster := etcdtest.New(t, etcdtest.Options{Flags: []string{"--bcrypt-cost=4"}})
	return cluster, askForPasswords(t, cluster)
}

// askForPasswords has members ask for passwords, and returns who may do everything there.
func askForPasswords(t *testing.T, cluster *etcdtest.Cluster) admin {
	t.Helper()
	anybody := administer(t, cluster.Client(t))
	anybody.addUser("root", "root")
	anybody.do(func(ctx context.Context) error {
		_, err := anybody.AuthEnable(ctx)
		return err
	})
	return administer(t, as(t, cluster, "root"))
}

// as returns a client of a user.
func as(t *testing.T, cluster *etcdtest.Cluster, user string) *clientv3.Client {
	t.Helper()
	return connectWith(t, clientv3.Config{Endpoints: cluster.Endpoints(), Username: user, Password: secret})
}

// addUser adds a user with a role that is there.
func (a admin) addUser(user, role string) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		if role == "root" {
			if _, err := a.RoleAdd(ctx, role); err != nil {
				return err
			}
		}
		if _, err := a.UserAdd(ctx, user, secret); err != nil {
			return err
		}
		_, err := a.UserGrantRole(ctx, user, role)
		return err
	})
}

// addRole adds a role that may read and write what begins with one of the prefixes.
func (a admin) addRole(role string, prefixes ...string) {
	a.t.Helper()
	a.do(func(ctx context.Context) error {
		_, err := a.RoleAdd(ctx, role)
		for _, prefix := range prefixes {
			if err == nil {
				_, err = a.RoleGrantPermission(ctx, role, prefix, clientv3.GetPrefixRangeEnd(prefix),
					clientv3.PermissionType(clientv3.PermReadWrite))
			}
		}
		return err
	})
}

func TestAuthentication(t *testing.T) {
	t.Parallel()
	cluster, root := withPasswords(t)
	root.addRole("app", etcdlock.DefaultPrefix)
	root.addUser("app", "app")
	addr := cluster.Member(0).Addr()
	t.Run("no user", func(t *testing.T) {
		failures.CheckAcquires(t, open(t, cluster.Endpoints()), unique("key"), etcdlock.ErrAuth)
	})
	t.Run("no such user", func(t *testing.T) {
		l, err := etcdlock.Open(t.Context(), "etcd://nobody:"+secret+"@"+addr)
		if err == nil {
			_ = l.Close()
		}
		checkError(t, err, "open", "", etcdlock.ErrAuth)
	})
	t.Run("right password", func(t *testing.T) {
		url := "etcd://app:" + secret + "@" + addr
		works(t, openURL(t, url), openURL(t, url), 0)
	})
	t.Run("password changed meanwhile", func(t *testing.T) {
		root.addUser("changed", "app")
		l := with(t, as(t, cluster, "changed"))
		works(t, l, l, 0)
		root.do(func(ctx context.Context) error {
			_, err := root.UserChangePassword(ctx, "changed", "other")
			return err
		})
		failures.CheckAcquires(t, l, unique("key"), etcdlock.ErrAuth)
	})
	t.Run("server forgets who is logged in", func(t *testing.T) {
		l, joined := joining(t, as(t, cluster, "app"), locker.TTL(9*time.Second)) // a restart may take seconds
		lease := mustTry(t, l, unique("key"))
		next := waits(l, lease.Key())
		joined(lease.Key(), 2)
		if err := cluster.Restart(); err != nil {
			t.Fatal(err)
		}
		outlives(t, lease, 1)
		mustUnlock(t, lease)
		mustUnlock(t, granted(t, next, patience))
	})
}

// TestPermission has a user who has no more than the documentation asks for, and one who has less.
func TestPermission(t *testing.T) {
	t.Parallel()
	cluster, root := withPasswords(t)
	root.addRole("app", etcdlock.DefaultPrefix)
	root.addRole("other", "other/")
	root.addUser("app", "app")
	root.addUser("other", "other")
	t.Run("the prefix is enough", func(t *testing.T) {
		const ttl, long = 3 * time.Second, 9 * time.Second // for renewals to be in time also when the machine is busy
		key := unique("key")
		l := etcdlock.New(as(t, cluster, "app"), locker.TTL(ttl))
		works(t, l, with(t, as(t, cluster, "app"), locker.TTL(ttl)), 1)
		lease := mustTry(t, l, key, locker.TTL(long))
		outlives(t, lease, 1) // so that it is watched
		keys, leases := root.claims(key)
		root.delete(keys[0])
		told(t, lease, long/3*9/10) // by a watch, not by a renewal
		mustTry(t, l, key)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if keys, _ := root.claims(key); len(keys) > 0 {
			t.Errorf("after Close, there is %q", keys)
		}
		root.do(func(ctx context.Context) error {
			r, err := root.TimeToLive(ctx, leases[0])
			if err == nil && r.TTL > 0 {
				t.Error("after Close, the lease is there")
			}
			return err
		})
	})
	t.Run("the prefix is enough for slots", func(t *testing.T) {
		const ttl = 3 * patience // so that who waits is told by a watch
		l, key := with(t, as(t, cluster, "app"), locker.TTL(ttl)), unique("key")
		first, second := mustTry(t, l, key, locker.Slots(2)), mustLock(t, l, key, locker.Slots(2))
		waiter := waits(with(t, as(t, cluster, "app"), locker.TTL(ttl)), key, locker.Slots(2))
		root.awaitLine(key, 3)
		mustUnlock(t, first)
		mustUnlock(t, granted(t, waiter, patience))
		mustUnlock(t, second)
	})
	t.Run("to inspect", func(t *testing.T) {
		root.addRole("viewer")
		root.do(func(ctx context.Context) error {
			_, err := root.RoleGrantPermission(ctx, "viewer", etcdlock.DefaultPrefix,
				clientv3.GetPrefixRangeEnd(etcdlock.DefaultPrefix), clientv3.PermissionType(clientv3.PermRead))
			return err
		})
		root.addUser("viewer", "viewer")
		held := mustLock(t, with(t, as(t, cluster, "app"), locker.Holder("worker")), unique("key"))
		l := with(t, as(t, cluster, "viewer"))
		info := inspect(t, l, held.Key())
		if len(info.Holders) != 1 || info.Holders[0].Name != "worker" || info.Holders[0].Left <= 0 {
			t.Errorf("who may only read is told %+v", info)
		}
		if keys := listed(t, l, held.Key()); len(keys) != 1 {
			t.Errorf("who may only read is told of %q", keys)
		}
		failures.CheckAcquires(t, l, unique("key"), etcdlock.ErrPermission)
		checkError(t, l.Revoke(t.Context(), held.Key(), "why"), "revoke", held.Key(), etcdlock.ErrPermission)
		checkError(t, l.Break(t.Context(), held.Key()), "break", held.Key(), etcdlock.ErrPermission)
		stranger := with(t, as(t, cluster, "other"))
		_, err := stranger.Inspect(t.Context(), held.Key())
		checkError(t, err, "inspect", held.Key(), etcdlock.ErrPermission)
		for _, err := range stranger.List(t.Context(), "") {
			checkError(t, err, "list", "", etcdlock.ErrPermission)
		}
		if err := held.Unlock(); err != nil {
			t.Errorf("what somebody else wanted to take away: %v", err)
		}
	})
	t.Run("the prefix is enough to take away", func(t *testing.T) {
		l, by := with(t, as(t, cluster, "app"), locker.TTL(3*time.Second)), with(t, as(t, cluster, "app"))
		for i := range 2 {
			lease := mustLock(t, l, unique("key"))
			take := func() error { return by.Revoke(t.Context(), lease.Key(), "why") }
			if i == 1 {
				take = func() error { return by.Break(t.Context(), lease.Key()) }
			}
			if err := take(); err != nil {
				t.Fatal(err)
			}
			told(t, lease, 3*time.Second)
			_ = lease.Unlock()
			mustUnlock(t, mustTry(t, by, lease.Key()))
		}
	})
	t.Run("none on the prefix", func(t *testing.T) {
		l := with(t, as(t, cluster, "other"))
		failures.CheckAcquires(t, l, unique("key"), etcdlock.ErrPermission)
		failures.CheckAcquires(
			t,
			with(t, as(t, cluster, "other"), locker.Prefix("other")),
			"key",
			etcdlock.ErrPermission,
		) // no slash
		mine := with(t, as(t, cluster, "other"), locker.Prefix("other/"))
		works(t, mine, mine, 0)
	})
	t.Run("others are not harmed", func(t *testing.T) {
		// Requests of several Locks share a transaction, which is refused as a whole.
		root.addRole("some", etcdlock.DefaultPrefix+"some/", etcdlock.DefaultPrefix+"!")
		root.addUser("some", "some")
		l := with(t, as(t, cluster, "some"))
		var calls []locktest.Pending[error]
		for i := range 64 {
			calls = append(calls, locktest.Started(func() error {
				key, want := unique("some/key"), error(nil)
				if i%8 == 0 {
					key, want = unique("key"), etcdlock.ErrPermission
				}
				lease, err := lock(l, key)
				if want != nil {
					checkError(t, err, "lock", key, want)
					return nil
				}
				if err == nil {
					err = lease.Unlock()
				}
				return err
			}))
		}
		for _, call := range calls {
			if err := call.Get(t); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("taken back while waiting", func(t *testing.T) {
		const prefix = etcdlock.DefaultPrefix + "passing/"
		root.addRole("passing", prefix)
		root.addUser("passing", "passing")
		const ttl = 3 * time.Second
		key := unique("key")
		held := mustTry(t, with(t, as(t, cluster, "app"), locker.Prefix(prefix)), key)
		waiter := waits(with(t, as(t, cluster, "passing"), locker.Prefix(prefix), locker.TTL(ttl)), key)
		root.awaitLine("passing/"+key, 2)
		root.do(func(ctx context.Context) error {
			_, err := root.UserRevokeRole(ctx, "passing", "passing")
			return err
		})
		err := waiter.Within(t, 2*ttl, "the waiter is told").err
		checkError(t, err, "lock", key, etcdlock.ErrPermission)
		root.awaitLine("passing/"+key, 1) // what nobody may delete goes with its lease
		mustUnlock(t, held)
	})
}
