package etcdlock

import (
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
)

// Guard returns a condition for a transaction of one's own: that the lease, which a Locker of this package granted,
// still holds its lock. It is checked by etcd in one step with what the transaction does, so not even a holder that was
// paused for an hour can write when somebody else has the lock:
//
//	resp, err := client.Txn(ctx).
//		If(etcdlock.Guard(lease)).
//		Then(clientv3.OpPut("orders/42/state", "paid")).
//		Commit()
//	if err == nil && !resp.Succeeded { // the lock was lost
//
// The condition does not hold once the key of the lease is gone. That may be a while after the lease has ended, if
// Unlock got no answer, say, or the deadline has passed, or the key is kept (locker.MinHold); until then nobody else
// has the lock. When the lease was detached, the condition still holds for it as for the lease that was adopted, as
// they have one token. With a lease that comes from another store it never holds.
func Guard(lease *locker.Lease) clientv3.Cmp {
	g := locker.GrantOf(lease)
	c, ok := g.Private.(*claim)
	if !ok {
		return clientv3.Compare(clientv3.CreateRevision("not a lock in etcd"), "<", 0) // which no key is
	}
	return clientv3.Compare(clientv3.CreateRevision(c.key), "=", int64(g.Token))
}
