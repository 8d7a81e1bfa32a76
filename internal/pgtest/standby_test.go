package pgtest

import "testing"

// withStandby returns a server with a table, and a standby of it.
func withStandby(t *testing.T) (primary, standby *Server) {
	t.Helper()
	primary = New(t, Options{})
	do1(t, primary.URL(), "CREATE TABLE t (i int)")
	do1(t, primary.URL(), "INSERT INTO t VALUES (1)")
	return primary, primary.Standby(t, Options{Settings: map[string]string{"work_mem": "6MB"}})
}

// A standby has what its primary has, only reads, and writes when it has been promoted.
func TestStandby(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t)
	expect(t, standby.URL(), "SHOW work_mem", "6MB")
	_, err := try(t, connect(t, standby.URL()), "INSERT INTO t VALUES (1)")
	expectCode(t, err, "25006") // it only reads
	do1(t, primary.URL(), "INSERT INTO t VALUES (10)")
	if err := standby.CatchUp(); err != nil {
		t.Fatal(err)
	}
	expect(t, standby.URL(), "SELECT sum(i) FROM t", "11")
	primary.Crash()
	if err := standby.Promote(); err != nil {
		t.Fatal(err)
	}
	do1(t, standby.URL(), "INSERT INTO t VALUES (100)")
	expect(t, standby.URL(), "SELECT sum(i) FROM t", "111")
	if err := primary.Restart(); err != nil { // which knows nothing of that
		t.Fatal(err)
	}
	expect(t, primary.URL(), "SELECT sum(i) FROM t", "11")
}

// Commits wait for a synchronous standby, and for no other.
func TestSynchronous(t *testing.T) {
	t.Parallel()
	primary, standby := withStandby(t)
	conn := connect(t, primary.URL()) // knows the settings of before
	if err := primary.SetSynchronous(standby); err != nil {
		t.Fatal(err)
	}
	standby.Crash()
	done := make(chan error, 1)
	go func() {
		_, err := try(t, conn, "INSERT INTO t VALUES (1)")
		done <- err
	}()
	if err := primary.await("SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"); err != nil {
		t.Fatal(err)
	}
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
}
