package docs_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/locktest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/testserver"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
)

// What docs/operating.md says about the servers.

func TestMain(m *testing.M) {
	os.Exit(testserver.Main(m, redistest.Main, pgtest.Main, etcdtest.Main))
}

// section returns what is on the page for operators under a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, section, found := strings.Cut(read(t, "docs/operating.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("there is no %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// TestWhatToWatch: the servers tell what the page says one should look at.
func TestWhatToWatch(t *testing.T) {
	t.Parallel()
	rows := section(t, "What to watch")
	redisRows, rest, _ := strings.Cut(rows[strings.Index(rows, "| Redis"):], "| Postgres")
	replica := redistest.New(t, redistest.Options{Args: []string{"--replicaof", "127.0.0.1", "1"}})
	rdb := redis.NewClient(&redis.Options{Addr: replica.Addr()})
	defer rdb.Close()
	info, err := rdb.Info(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(redisRows, -1) {
		if n++; !strings.Contains(info, "\n"+name[1]+":") {
			t.Errorf("Redis does not tell of %s", name[1])
		}
	}
	response, err := http.Get("http://" + etcdtest.Address(t) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	metrics, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile("`(etcd_[a-z_]+)`").FindAllStringSubmatch(rest, -1) {
		if n++; !strings.Contains(string(metrics), "# TYPE "+name[1]+" ") {
			t.Errorf("etcd does not tell of %s", name[1])
		}
	}
	if n < 12 {
		t.Errorf("only %d names were found", n)
	}
}

// taken waits until the next in line has the lock, and the one before knows.
func taken(t *testing.T, lost *locker.Lease, next <-chan error) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	select {
	case <-lost.Done():
		if err := lost.Err(); !errors.Is(err, locker.ErrLost) {
			t.Errorf("the holder: %v", err)
		}
	case <-timeout:
		t.Error("the holder is not told")
	}
	select {
	case err := <-next:
		if err != nil {
			t.Errorf("the next in line: %v", err)
		}
	case <-timeout:
		t.Error("the next in line does not get the lock")
	}
}

// standoff has one Locker hold what another waits for.
func standoff(t *testing.T, open func() (locker.Locker, error)) (*locker.Lease, <-chan error) {
	t.Helper()
	var lockers [2]locker.Locker
	for i := range lockers {
		l, err := open()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		lockers[i] = l
	}
	lease, err := lockers[0].Lock(t.Context(), "orders/42")
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := lockers[1].Lock(ctx, "orders/42")
		next <- err
	}()
	return lease, next
}

// TestBreakPostgres finds the holder by the SQL of the page, and ends its session.
func TestBreakPostgres(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t, pgtest.Options{})
	admin, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.WithoutCancel(t.Context()))
	lease, next := standoff(t, func() (locker.Locker, error) {
		return pglock.Open(t.Context(), server.URL(), locker.Holder("worker"))
	})
	// The same key in another database is another lock.
	if _, err := admin.Exec(t.Context(), "CREATE DATABASE other"); err != nil {
		t.Fatal(err)
	}
	other, err := pglock.Open(t.Context(), strings.Replace(server.URL(), "/postgres?", "/other?", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.TryLock(t.Context(), "orders/42"); err != nil {
		t.Fatal(err)
	}
	find := blocks(section(t, "A lock that does not come free"), "sql")
	if len(find) != 2 {
		t.Fatalf("%d blocks of SQL", len(find))
	}
	rows, err := admin.Query(t.Context(), find[0])
	if err != nil {
		t.Fatal(err)
	}
	type session struct {
		PID             int
		ApplicationName string
		ClientAddr      any
		BackendStart    time.Time
	}
	holder, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[session])
	if err != nil {
		t.Fatal(err)
	}
	if holder.ApplicationName != "locker" {
		t.Errorf("%+v", holder)
	}
	type record struct {
		ConvertFrom string
		Token       uint64
		Since       time.Time
		PID         int
	}
	known := func() (record, error) {
		rows, err := admin.Query(t.Context(), find[1])
		if err != nil {
			t.Fatal(err)
		}
		return pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[record])
	}
	locktest.Eventually(t, "its name is in the table", func() bool { _, err := known(); return err == nil })
	if r, _ := known(); r.ConvertFrom != "worker" || r.PID != holder.PID || r.Token != lease.Token() {
		t.Errorf("%+v; want the worker", r)
	}
	if _, err := admin.Exec(t.Context(), "SELECT pg_terminate_backend($1)", holder.PID); err != nil {
		t.Fatal(err)
	}
	taken(t, lease, next)
}

// TestBreakRedis runs the commands of the page.
func TestBreakRedis(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(
		&redis.Options{Addr: redistest.New(t, redistest.Options{}).Addr()},
	) // the key is what the page says
	defer rdb.Close()
	const ttl = 3 * time.Second
	lease, next := standoff(t, func() (locker.Locker, error) {
		return redislock.New(rdb, locker.TTL(ttl), locker.Holder("worker-7")), nil
	})
	page := section(t, "A lock that does not come free")
	do := func(command string) *redis.Cmd {
		if !strings.Contains(page, command) {
			t.Errorf("the page does not have %q", command)
		}
		var args []any
		for _, word := range strings.Fields(command) {
			args = append(args, word)
		}
		return rdb.Do(t.Context(), args...)
	}
	if value, err := do("GET locker:orders/42").Text(); err != nil || !strings.HasSuffix(value, ":worker-7") {
		t.Errorf("GET: %q, %v", value, err)
	}
	if left, err := do("PTTL locker:orders/42").Int64(); err != nil || left <= 0 || left > ttl.Milliseconds() {
		t.Errorf("PTTL: %d, %v", left, err)
	}
	if err := do("DEL locker:orders/42").Err(); err != nil {
		t.Error(err)
	}
	taken(t, lease, next)
}
