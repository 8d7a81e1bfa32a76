package objects

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/memlock"
)

// newObject returns an object that is not there yet, on a server of its own, which speaks the protocol of S3 and checks
// the conditions of a write in one step with the write.
func newObject(t *testing.T) Object {
	return newObjectBehind(t, func(h http.Handler) http.Handler { return h })
}

// newObjectBehind is newObject with something between client and server.
func newObjectBehind(t *testing.T, between func(http.Handler) http.Handler) Object {
	t.Helper()
	server := httptest.NewServer(between(gofakes3.New(s3mem.New(), gofakes3.WithAutoBucket(true)).Server()))
	t.Cleanup(server.Close)
	return Object{Bucket: "bucket", Key: "object", Client: s3.New(s3.Options{
		Region:       "us-east-1",
		BaseEndpoint: &server.URL,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider("id", "secret", ""),
	})}
}

// handover returns the tokens of a holder that has lost its lock without noticing, and of the next one.
func handover(t *testing.T) (stale, fresh uint64) {
	t.Helper()
	memory := memlock.New()
	const ttl = 500 * time.Millisecond // the less, the sooner a busy machine takes longer to say that it is locked
	lost, err := memory.Lock(t.Context(), "object", locker.TTL(ttl), locker.NoRenew())
	if err != nil {
		t.Fatal(err)
	}
	next, err := memory.Peer().Lock(t.Context(), "object")
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Err(); !errors.Is(err, locker.ErrLost) {
		t.Fatalf("the first holder: %v", err)
	}
	return lost.Token(), next.Token()
}

// to makes the content of an object s.
func to(s string) func([]byte) []byte { return func([]byte) []byte { return []byte(s) } }

func (o Object) want(t *testing.T, content string) {
	t.Helper()
	got, err := o.Get(t.Context())
	if err != nil || string(got) != content {
		t.Errorf("the object is %q, %v; want %q", got, err, content)
	}
}

func TestStaleIsRefused(t *testing.T) {
	t.Parallel()
	o := newObject(t)
	stale, fresh := handover(t)
	if err := o.Update(t.Context(), stale, to("old")); err != nil { // nobody else has been here
		t.Error(err)
	}
	for range 2 { // the second time, as an answer got lost
		if err := o.Update(t.Context(), fresh, to("new")); err != nil {
			t.Error(err)
		}
	}
	if err := o.Update(t.Context(), stale, to("late")); !errors.Is(err, ErrStale) {
		t.Errorf("the stale holder: %v", err)
	}
	o.want(t, "new")
}

// TestOneBetweenReadAndWriteOfTheOther has one holder write while the other has read and not written yet: what is
// there, or nothing.
func TestOneBetweenReadAndWriteOfTheOther(t *testing.T) {
	t.Parallel()
	for _, before := range []string{"", "content"} {
		for _, slowIsStale := range []bool{true, false} {
			t.Run(strconv.Quote(before)+", the slow one is stale: "+strconv.FormatBool(slowIsStale), func(t *testing.T) {
				t.Parallel()
				o := newObject(t)
				stale, fresh := handover(t)
				if before != "" {
					if err := o.Update(t.Context(), stale, to(before)); err != nil {
						t.Fatal(err)
					}
				}
				slow, quick := fresh, stale
				if slowIsStale {
					slow, quick = stale, fresh
				}
				calls := 0
				err := o.Update(t.Context(), slow, func(old []byte) []byte {
					if calls++; calls == 1 {
						if err := o.Update(t.Context(), quick, func(old []byte) []byte { return append(old, " quick"...) }); err != nil {
							t.Error(err)
						}
					}
					return append(old, " slow"...)
				})
				if slowIsStale {
					if !errors.Is(err, ErrStale) || calls != 1 {
						t.Errorf("the stale holder, after %d calls: %v", calls, err)
					}
					o.want(t, before+" quick")
					return
				}
				if err != nil || calls != 2 {
					t.Errorf("the new holder, after %d calls: %v", calls, err)
				}
				o.want(t, before+" quick slow")
			})
		}
	}
}

// TestSameContent: a new holder that writes what is there already keeps out a stale one that has read it before.
func TestSameContent(t *testing.T) {
	t.Parallel()
	o := newObject(t)
	stale, fresh := handover(t)
	if err := o.Update(t.Context(), stale, to("content")); err != nil {
		t.Fatal(err)
	}
	err := o.Update(t.Context(), stale, func([]byte) []byte {
		if err := o.Update(t.Context(), fresh, to("content")); err != nil {
			t.Error(err)
		}
		return []byte("late")
	})
	if !errors.Is(err, ErrStale) {
		t.Errorf("the stale holder: %v", err)
	}
	o.want(t, "content")
}

// TestTokenInMetadata shows why it is not there, as the page says: the same ETag for two tokens.
func TestTokenInMetadata(t *testing.T) {
	t.Parallel()
	o := newObject(t)
	stale, fresh := handover(t)
	var etags []string
	for _, token := range []uint64{stale, fresh} {
		out, err := o.Client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &o.Bucket, Key: &o.Key,
			Metadata: map[string]string{"token": strconv.FormatUint(token, 10)}})
		if err != nil {
			t.Fatal(err)
		}
		etags = append(etags, aws.ToString(out.ETag))
	}
	if etags[0] == "" || etags[0] != etags[1] {
		t.Errorf("the ETags are %q", etags)
	}
}

// TestManyAtOnce has many who add to an object: none gets lost.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	o := newObject(t)
	_, token := handover(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const writers, each = 4, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if err := o.Update(ctx, token, func(old []byte) []byte { return append(old, 'x') }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := o.Get(ctx); err != nil || len(got) != writers*each {
		t.Errorf("%q, %v", got, err)
	}
}

// TestLostAnswer has the answer of the first write get lost: the client repeats it, and is refused by its own
// condition.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	var puts atomic.Int32
	o := newObjectBehind(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && puts.Add(1) == 1 {
				h.ServeHTTP(httptest.NewRecorder(), r)
				panic(http.ErrAbortHandler) // which closes the connection
			}
			h.ServeHTTP(w, r)
		})
	})
	_, token := handover(t)
	if err := o.Update(t.Context(), token, func(old []byte) []byte { return append(old, 'x') }); err != nil {
		t.Error(err)
	}
	o.want(t, "xx") // twice, as is documented
}

func TestOtherErrors(t *testing.T) {
	t.Parallel()
	o := newObject(t)
	_, token := handover(t)
	put := &s3.PutObjectInput{Bucket: &o.Bucket, Key: &o.Key}
	if _, err := o.Client.PutObject(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	if err := o.Update(t.Context(), token, to("content")); !errors.Is(err, strconv.ErrSyntax) {
		t.Errorf("over an object without a token: %v", err)
	}
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	o.Client = s3.New(o.Client.Options(),
		func(opts *s3.Options) { opts.BaseEndpoint, opts.RetryMaxAttempts = &down.URL, 1 })
	if err := o.Update(t.Context(), token, to("content")); err == nil || errors.Is(err, ErrStale) {
		t.Errorf("no server: %v", err)
	}
}
