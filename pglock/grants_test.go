package pglock_test

import (
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/pglock"
)

// operatingGrants returns the permissions that docs/operating.md has for somebody, each as a grant of its own.
func operatingGrants(t *testing.T, who string) (grants []string) {
	t.Helper()
	page, err := os.ReadFile("../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^GRANT (.*) TO `+who+`;$`).FindAllSubmatch(page, -1) {
		permissions, on, hasOn := strings.Cut(string(m[1]), " ON ")
		if hasOn {
			on = " ON " + on
		}
		for _, permission := range regexp.MustCompile(`\w+( \([^)]*\))?`).FindAllString(permissions, -1) {
			grants = append(grants, "GRANT "+permission+on)
		}
	}
	if len(grants) < 2 {
		t.Fatalf("docs/operating.md has only %q for %s", grants, who)
	}
	return grants
}

// granted returns the connection string of a new role with some grants.
func granted(t *testing.T, admin *session, dsn string, grants []string) string {
	t.Helper()
	name, url := role(t, admin, dsn)
	for _, grant := range grants {
		admin.do(grant + " TO " + name)
	}
	return url
}

// without calls f with what there is without each of some grants.
func without(t *testing.T, grants []string, f func(t *testing.T, left []string)) {
	for i, grant := range grants {
		t.Run("without "+strings.TrimPrefix(grant, "GRANT "), func(t *testing.T) {
			f(t, slices.Delete(slices.Clone(grants), i, i+1))
		})
	}
}

// denied checks that something is refused for want of a permission.
func denied(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, pglock.ErrPermission) || !errors.Is(err, locker.ErrDenied) {
		t.Errorf("%s: %v; want ErrPermission", what, err)
	}
}

func listError(t *testing.T, l *locker.Client) (failure error) {
	for _, failure = range l.List(t.Context(), "") { //nolint:revive // the last one is what counts
	}
	return failure
}

// TestGrantsToInspect: who may only inspect can read names, and can neither lock nor take away.
func TestGrantsToInspect(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	mustTry(t, open(t, server.URL(), locker.Holder("worker"), locker.TTL(time.Hour)), "key")
	eventually(t, "it is known", func() bool { return admin.records("key") == 1 })
	grants := operatingGrants(t, "viewer")
	l := open(t, granted(t, admin, server.URL(), grants)).(*locker.Client)
	if info := inspect(t, l, "key"); len(info.Holders) != 1 || info.Holders[0].Name != "worker" {
		t.Errorf("%+v; want the worker", info)
	}
	if keys := list(t, l, ""); !slices.Equal(keys, []string{"key"}) {
		t.Errorf("%q are listed", keys)
	}
	denied(t, "Revoke", l.Revoke(t.Context(), "key", ""))
	denied(t, "Break", l.Break(t.Context(), "key", locker.AlsoOthers()))
	_, err := l.TryLock(t.Context(), "other")
	denied(t, "TryLock", err)
	without(t, grants, func(t *testing.T, left []string) {
		l := open(t, granted(t, admin, server.URL(), left)).(*locker.Client)
		denied(t, "List", listError(t, l))
		if info := inspect(t, l, "key"); len(info.Holders) != 1 || info.Holders[0].Name != "" {
			t.Errorf("%+v; want somebody who is not known", info)
		}
	})
}

// TestGrantsToRevoke: who may revoke cannot break.
func TestGrantsToRevoke(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	worker := openWatched(t, pglock.Config{}, server.URL(), locker.Holder("worker"), locker.TTL(time.Hour))
	lease := mustTry(t, worker, "key")
	admin.awaitHearing(worker)
	grants := operatingGrants(t, "revoker")
	by := open(t, granted(t, admin, server.URL(), grants), locker.Holder("operator")).(*locker.Client)
	denied(t, "Break", by.Break(t.Context(), "key", locker.AlsoOthers()))
	if info := inspect(t, by, "key"); len(info.Holders) != 1 || info.Holders[0].Name != "worker" || lease.Err() != nil {
		t.Errorf("%+v, %v; want the worker", info, lease.Err())
	}
	without(t, grants, func(t *testing.T, left []string) {
		l := open(t, granted(t, admin, server.URL(), left)).(*locker.Client)
		denied(t, "Revoke", l.Revoke(t.Context(), "key", why))
	})
	mustRevoke(t, by, "key")
	wasRevoked(t, lease)
	unlockTaken(t, lease)
}

// TestGrantsToBreak: who may break may end the sessions of Lockers, and needs that where they do not let go.
func TestGrantsToBreak(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	_, app := appRole(t, admin, server.URL()) // those of a superuser can be ended by others only
	grants := operatingGrants(t, "breaker")
	breaks := func(t *testing.T, left []string) error {
		by := open(t, granted(t, admin, server.URL(), left)).(*locker.Client)
		worker, key := open(t, app, locker.TTL(time.Hour)), unique("key")
		leases := []*locker.Lease{mustTry(t, worker, key), mustTry(t, worker, key+"other")}
		defer func() {
			for _, lease := range leases {
				_ = lease.Unlock()
			}
		}()
		err := by.Break(t.Context(), key, locker.Reason(why))
		if others := (*locker.OthersError)(nil); !errors.As(err, &others) || errors.Is(err, pglock.ErrPermission) {
			return err
		}
		if n := admin.revocations(key); n != 0 {
			t.Errorf("%d revocations are left of what was not done", n)
		}
		if err := by.Break(t.Context(), key, locker.Reason(why), locker.AlsoOthers()); err != nil {
			return err
		}
		ends(t, leases[0])
		ends(t, leases[1])
		return nil
	}
	if err := breaks(t, grants); err != nil {
		t.Errorf("Break: %v", err)
	}
	without(t, grants, func(t *testing.T, left []string) { denied(t, "Break", breaks(t, left)) })
}

// TestGrantsToBeSeen: a role without the permissions to be seen locks and renews all the same.
func TestGrantsToBeSeen(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second // renewals are in time also when the machine is busy
	server := pgtest.New(t, pgtest.Options{})
	admin := connect(t, server.URL())
	admin.do(pglock.SchemaSQL(pglock.DefaultNamespace))
	by := operator(t, server.URL())
	seen := func(t *testing.T, grants []string) (known, told bool) {
		key := unique("key")
		l := openWatched(t, pglock.Config{}, granted(t, admin, server.URL(), grants), locker.TTL(ttl),
			locker.Holder("worker"))
		lease := mustTry(t, l, key)
		works(t, l, l, 0)
		locktest.Outlives(t, lease, 1)
		known = locktest.Within(ttl, func() bool { return inspect(t, by, key).Holders[0].Name == "worker" })
		mustRevoke(t, by, key)
		locktest.Within(ttl, func() bool { return lease.Err() != nil })
		told = errors.Is(lease.Err(), locker.ErrRevoked)
		if !told && lease.Err() != nil {
			t.Error(lease.Err())
		}
		_ = lease.Unlock()
		return known, told
	}
	all := operatingGrants(t, "app")
	if known, told := seen(t, all); !known || !told {
		t.Errorf("known: %v, told: %v; want both", known, told)
	}
	needed := len(documentedGrants(t))
	var optional []string
	for _, grant := range all {
		if strings.Contains(grant, "locker.holder") || strings.Contains(grant, "locker.revocation") {
			optional = append(optional, grant)
		}
	}
	if len(optional) != 5 || len(all)-len(optional) < needed {
		t.Errorf("%d grants, of which %q are not needed to lock", len(all), optional)
	}
	without(t, optional, func(t *testing.T, left []string) {
		t.Parallel()
		must := slices.DeleteFunc(slices.Clone(all), func(g string) bool { return slices.Contains(optional, g) })
		known, told := seen(t, append(must, left...))
		has := func(grant string) bool { return slices.Contains(left, grant) }
		if want := has("GRANT INSERT ON locker.holder"); known != want {
			t.Errorf("known: %v; want %v", known, want)
		}
		if want := has("GRANT SELECT ON locker.revocation"); told != want {
			t.Errorf("told: %v; want %v", told, want)
		}
	})
}
