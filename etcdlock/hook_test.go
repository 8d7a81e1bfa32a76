package etcdlock_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
)

// request is a transaction that writes, in the hands of a hook.
type request struct {
	ctx           context.Context // of the attempt
	puts, deletes []string        // keys
	send          func(context.Context) (*clientv3.TxnResponse, error)
	sendLate      func(context.Context) (*clientv3.TxnResponse, error) // when the connection it was made for is closed
}

// pass is the hook that does nothing.
func pass(r request) (*clientv3.TxnResponse, error) { return r.send(r.ctx) }

// claims reports whether the request makes a claim to a lock.
func (r request) claims(key string) bool { return claimOf(r.puts, key) }

// unclaims reports whether the request deletes a claim to a lock.
func (r request) unclaims(key string) bool { return claimOf(r.deletes, key) }

func claimOf(keys []string, key string) bool {
	return slices.ContainsFunc(keys,
		func(k string) bool { return strings.HasPrefix(k, etcdlock.Key(etcdlock.DefaultPrefix+key)) })
}

// hooked returns a Locker, closed with the test, each of whose transactions that write is left to the hook. One that
// the hook does not answer is sent to another endpoint, as if this one were dead.
func hooked(
	t testing.TB, client *clientv3.Client, hook func(request) (*clientv3.TxnResponse, error), opts ...locker.Option,
) *locker.Client {
	t.Helper()
	late := clientv3.NewKV(client)
	l := etcdlock.NewSilent(client, func(kv clientv3.KV) clientv3.KV { return hookedKV{kv, hook, late} }, opts...)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

type hookedKV struct {
	clientv3.KV
	hook func(request) (*clientv3.TxnResponse, error)
	late clientv3.KV
}

func (kv hookedKV) Txn(ctx context.Context) clientv3.Txn { return &hookedTxn{kv: kv, ctx: ctx} }

// Delete is a transaction to the hook, as other requests.
func (kv hookedKV) Delete(ctx context.Context, key string, _ ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	resp, err := kv.Txn(ctx).Then(clientv3.OpDelete(key)).Commit()
	if err != nil {
		return nil, err
	}
	return (*clientv3.DeleteResponse)(resp.Responses[0].GetResponseDeleteRange()), nil
}

type hookedTxn struct {
	kv        hookedKV
	ctx       context.Context
	cmps      []clientv3.Cmp
	then, els []clientv3.Op
}

func (x *hookedTxn) If(cmps ...clientv3.Cmp) clientv3.Txn { x.cmps = cmps; return x }
func (x *hookedTxn) Then(ops ...clientv3.Op) clientv3.Txn { x.then = ops; return x }
func (x *hookedTxn) Else(ops ...clientv3.Op) clientv3.Txn { x.els = ops; return x }

func (x *hookedTxn) Commit() (*clientv3.TxnResponse, error) {
	by := func(kv clientv3.KV) func(context.Context) (*clientv3.TxnResponse, error) {
		return func(ctx context.Context) (*clientv3.TxnResponse, error) {
			return kv.Txn(ctx).If(x.cmps...).Then(x.then...).Else(x.els...).Commit()
		}
	}
	r := request{ctx: x.ctx, send: by(x.kv.KV), sendLate: by(x.kv.late)}
	r.written(x.then)
	if len(r.puts)+len(r.deletes) == 0 {
		return pass(r)
	}
	return x.kv.hook(r)
}

// written notes what operations write, also those within transactions.
func (r *request) written(ops []clientv3.Op) {
	for _, op := range ops {
		switch {
		case op.IsPut():
			r.puts = append(r.puts, string(op.KeyBytes()))
		case op.IsDelete():
			r.deletes = append(r.deletes, string(op.KeyBytes()))
		case op.IsTxn():
			_, then, _ := op.Txn()
			r.written(then)
		}
	}
}

// delayed is a hook that keeps the first of some requests back until it is told to let it go: it gets no answer.
type delayed struct {
	which func(request) bool
	mu    sync.Mutex
	old   *request
}

func (d *delayed) hook(r request) (*clientv3.TxnResponse, error) {
	d.mu.Lock()
	first := d.old == nil && d.which(r)
	if first {
		d.old = &r
	}
	d.mu.Unlock()
	if !first {
		return pass(r)
	}
	<-r.ctx.Done()
	return nil, r.ctx.Err()
}

// has reports whether there is a request that is kept back.
func (d *delayed) has() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.old != nil
}

// arrive has the request arrive.
func (d *delayed) arrive(t testing.TB) {
	t.Helper()
	d.mu.Lock()
	old := d.old
	d.mu.Unlock()
	if old == nil {
		t.Fatal("there was no request to delay")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := old.sendLate(ctx); err != nil {
		t.Fatal(err)
	}
}
