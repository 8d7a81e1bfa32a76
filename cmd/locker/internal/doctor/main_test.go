package doctor_test

import (
	"context"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker/cmd/locker/internal/doctor"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/testserver"
)

func TestMain(m *testing.M) {
	os.Exit(testserver.Main(m, redistest.Main, pgtest.Main, etcdtest.Main))
}

// secret is the password of everybody.
const secret = "s3cret-Passw0rd"

// ttl is so long that no server of a test is slow compared with it.
const ttl = 10 * time.Minute

// patient is the options for a store that works, on a machine that may be busy.
func patient(url string) doctor.Options {
	return doctor.Options{URL: url, TTL: ttl, Within: 2 * time.Minute}
}

// hasty is the options for a server that hangs.
func hasty(url string) doctor.Options {
	return doctor.Options{URL: url, TTL: 10 * time.Second, Within: 2 * time.Second}
}

// kind is a kind of store.
type kind string

// examinations are the functions for them.
var examinations = map[kind]func(context.Context, doctor.Options) ([]doctor.Result, error){
	onRedis: doctor.Redis, onRedlock: doctor.Redlock, onPostgres: doctor.Postgres, onEtcd: doctor.Etcd,
}

// want is what a check that is not ok has to say. A check that is the consequence of what others say need not be
// anything in particular.
type want struct {
	status doctor.Status // "" is any
	do     string        // is in the remedy
}

// consequence is what is not looked at.
var consequence = want{}

// examine makes the checks, and compares all that are not ok with what is wanted. By their names, as any server may
// have that.
func (k kind) examine(t *testing.T, o doctor.Options, wants map[string]want) []doctor.Result {
	t.Helper()
	results := must(examinations[k](t.Context(), o))(t)
	compare(t, results, wants)
	return results
}

// eventually is examine for a server that hangs at times: with more time, until it was asked what is wanted. So the
// machine may be busy.
func (k kind) eventually(t *testing.T, o doctor.Options, check string, wants map[string]want) {
	t.Helper()
	for ; ; o.Within *= 2 {
		results := must(examinations[k](t.Context(), o))(t)
		asked := slices.ContainsFunc(results, func(r doctor.Result) bool { return r.Check == check })
		if asked || o.Within > time.Minute {
			compare(t, results, wants)
			return
		}
	}
}

func compare(t *testing.T, results []doctor.Result, wants map[string]want) {
	t.Helper()
	found := make(map[string]bool)
	for _, r := range results {
		checkForm(t, r)
		w, isWanted := wants[r.Check]
		switch {
		case r.Status == doctor.OK || w == consequence && isWanted:
		case !isWanted || r.Status != w.status || !strings.Contains(r.Do, w.do):
			t.Errorf("%s, want %+v", line(r), w)
		default:
			found[r.Check] = true
		}
	}
	for name, w := range wants {
		if w != consequence && !found[name] {
			t.Errorf("%s is ok, or missing; want %+v", name, w)
		}
	}
	if t.Failed() {
		for _, r := range results {
			t.Log(line(r))
		}
	}
}

func line(r doctor.Result) string {
	return strings.Join([]string{string(r.Status), r.Check, r.Server, r.Found, "DO: " + r.Do}, " | ")
}

// checkForm checks what is the same for all results.
func checkForm(t *testing.T, r doctor.Result) {
	t.Helper()
	statuses := []doctor.Status{doctor.OK, doctor.Warn, doctor.Fail, doctor.Unknown}
	if !slices.Contains(statuses, r.Status) || r.Check == "" || r.Found == "" || r.Why == "" {
		t.Errorf("incomplete: %+v", r)
	}
	if (r.Status == doctor.Fail || r.Status == doctor.Warn) && r.Do == "" {
		t.Errorf("no remedy: %s", line(r))
	}
	for _, text := range []string{r.Check, r.Server, r.Found, r.Why, r.Do} {
		if strings.Contains(text, secret) {
			t.Errorf("the password is in %q", text)
		}
		if strings.Contains(text, "\n") || strings.Contains(text, "%!") {
			t.Errorf("not one line, or a mistake: %q", text)
		}
	}
}

// onlyConnect checks that there is one result: that there is no connection.
func (k kind) onlyConnect(t *testing.T, o doctor.Options, do string) {
	t.Helper()
	results := k.examine(t, o, map[string]want{"connect": {doctor.Fail, do}})
	if len(results) != 1 {
		t.Errorf("%d results, want one", len(results))
	}
}

// must is for what has to work.
func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// lying returns the address of something before a server that changes what that says.
func lying(t *testing.T, upstream string, lie func(said []byte) []byte) (addr string) {
	t.Helper()
	return strangers.Serve(t, func(client net.Conn) {
		server, err := net.Dial("tcp", upstream)
		if err != nil {
			return
		}
		defer server.Close()
		go func() {
			_, _ = io.Copy(server, client)
			_ = server.Close()
		}()
		said := make([]byte, 1<<20)
		for {
			n, err := server.Read(said)
			if n > 0 {
				if _, err := client.Write(lie(said[:n])); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// behind returns a proxy before a server.
func behind(t *testing.T, addr string) *faultproxy.Proxy {
	t.Helper()
	return faultproxy.New(t, addr)
}
