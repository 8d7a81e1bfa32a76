package pgtest

import (
	"testing"

	"github.com/lockerkit/locker/internal/testserver/selftest"
)

// withStandby returns a server with a table, and a standby of it.
func withStandby(t *testing.T, opts Options) (primary, standby *Server) {
	t.Helper()
	primary = New(t, Options{Settings: map[string]string{"max_connections": "210", "work_mem": "5MB"}})
	do1(t, primary.URL(), "CREATE TABLE t (i int)")
	do1(t, primary.URL(), "INSERT INTO t VALUES (1)")
	return primary, primary.Standby(t, opts)
}

func TestStandby(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t, Options{Settings: map[string]string{"work_mem": "6MB"}})
	expect(t, standby.URL(), "SHOW max_connections", "210")
	expect(t, standby.URL(), "SHOW work_mem", "6MB")
	expect(t, standby.URL(), "SELECT pg_is_in_recovery()", "t")
	expect(t, standby.URL(), "SELECT sum(i) FROM t", "1")
	_, err := try(t, connect(t, standby.URL()), "INSERT INTO t VALUES (1)")
	expectCode(t, err, "25006") // it only reads

	catchUp := func(sum string) {
		t.Helper()
		do1(t, primary.URL(), "INSERT INTO t VALUES (1)")
		if err := standby.CatchUp(); err != nil {
			t.Fatal(err)
		}
		expect(t, standby.URL(), "SELECT sum(i) FROM t", sum)
	}
	catchUp("2")
	standby.Crash()
	do1(t, primary.URL(), "INSERT INTO t VALUES (1)")
	if err := standby.Restart(); err != nil {
		t.Fatal(err)
	}
	catchUp("4")
	if err := primary.Restart(); err != nil {
		t.Fatal(err)
	}
	catchUp("5")
	if err := primary.CatchUp(); err == nil {
		t.Error("CatchUp of a primary")
	}
}

func TestPromote(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t, Options{})
	do1(t, primary.URL(), "INSERT INTO t VALUES (10)")
	if err := standby.CatchUp(); err != nil {
		t.Fatal(err)
	}
	if err := primary.Promote(); err == nil {
		t.Error("Promote of a primary")
	}
	primary.Crash()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	do1(t, standby.URL(), "INSERT INTO t VALUES (100)")
	expect(t, standby.URL(), "SELECT sum(i) FROM t", "111")
	if err := standby.Restart(); err != nil {
		t.Fatal(err)
	}
	expect(t, standby.URL(), "SELECT pg_is_in_recovery()", "f")
	if err := standby.Promote(); err == nil {
		t.Error("Promote for the second time")
	}

	// The old primary knows nothing of that.
	if err := primary.Restart(); err != nil {
		t.Fatal(err)
	}
	do1(t, primary.URL(), "INSERT INTO t VALUES (1000)")
	expect(t, primary.URL(), "SELECT sum(i) FROM t", "1011")

	// The new one can have a standby again.
	second := standby.Standby(t, Options{})
	expect(t, second.URL(), "SELECT sum(i) FROM t", "111")
}

func TestSynchronous(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t, Options{})
	other := primary.Standby(t, Options{})
	conn := connect(t, primary.URL()) // knows the settings of before
	for range 3 {
		if err := primary.SetSynchronous(standby); err != nil {
			t.Fatal(err)
		}
		do(t, conn, "INSERT INTO t VALUES (1)")
		standby.Crash()
		done := make(chan error, 1)
		go func() {
			_, err := try(t, conn, "INSERT INTO t VALUES (1)")
			done <- err
		}()
		const waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
		await(t, primary.URL(), waiting, "1")
		if err := standby.Restart(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}

		if err := primary.SetSynchronous(nil); err != nil {
			t.Fatal(err)
		}
		standby.Crash()
		do(t, conn, "INSERT INTO t VALUES (1)") // does not wait
		if err := standby.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	if err := standby.SetSynchronous(other); err == nil {
		t.Error("SetSynchronous of another server's standby")
	}
	// With a standby that is away, it can still be taken back.
	if err := primary.SetSynchronous(other); err != nil {
		t.Fatal(err)
	}
	other.Crash()
	if err := primary.SetSynchronous(nil); err != nil {
		t.Fatal(err)
	}
	do(t, conn, "INSERT INTO t VALUES (1)")
	if err := primary.Close(); err != nil {
		t.Fatal(err)
	}
	selftest.ExpectRefused(t, primary.Addr())
}
