package etcdlock

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// endpoints are those of the client, if there are several each with a connection of its own. The client's own
// connection asks all of them in turn, whether they answer or not, and has no place for one to be chosen: of two
// endpoints of which one is dead, each other request would be lost. Here, one endpoint is asked for as long as it
// answers, and then the next.
type endpoints struct {
	client *clientv3.Client
	stubs  stubs
	logins logins

	mu     sync.Mutex
	closed bool
	names  []string // as the client had them last
	all    []*endpoint
	first  int // index of the one that is asked first
}

// stubs make connections, and of a connection what requests are made by.
type stubs struct {
	dial   func(endpoint string) (*grpc.ClientConn, error)
	kv     func(*grpc.ClientConn) clientv3.KV
	leases func(*grpc.ClientConn) pb.LeaseClient
	alive  func(*grpc.ClientConn) pb.ClusterClient
}

// endpoint is where one member, or what stands before several, is reached.
type endpoint struct {
	of   *endpoints
	name string

	// What follows is guarded by endpoints.mu.
	removed bool // it is none of the client's any more
	link    *link
	dialing chan struct{} // closed when there is a link, or err is set; nil if nobody dials
	err     error
	silence time.Duration // for which it is passed over, as it did not answer; grows with each time
	until   time.Time
	woken   time.Time // when its connection was last told to wait no longer before it tries again
}

const (
	firstSilence   = time.Second
	longestSilence = 30 * time.Second

	// How long a connection may take at least: many handshakes with one far away.
	timeToConnect = time.Second

	// What was given up sooner says nothing about the endpoint.
	leastPatience = 50 * time.Millisecond
)

// link is a connection to an endpoint.
type link struct {
	conn   *grpc.ClientConn
	kv     clientv3.KV
	leases pb.LeaseClient
	watch  pb.WatchClient
	status pb.MaintenanceClient
	alive  pb.ClusterClient

	made time.Time

	// What follows is guarded by endpoints.mu.
	heard   time.Time // when the last answer came
	users   int
	retired bool // it is closed when nobody uses it any more
}

func newEndpoints(client *clientv3.Client) *endpoints {
	es := &endpoints{client: client, logins: newLogins(client)}
	es.stubs.dial = client.Dial
	es.stubs.leases, es.stubs.alive = pb.NewLeaseClient, pb.NewClusterClient
	es.stubs.kv = func(conn *grpc.ClientConn) clientv3.KV {
		return clientv3.NewKVFromKVClient(onceKV{pb.NewKVClient(conn), es.logins}, client)
	}
	return es
}

// refreshLocked takes over what endpoints the client has now.
func (es *endpoints) refreshLocked() {
	names := es.client.Endpoints()
	switch {
	case es.closed, slices.Equal(names, es.names) && es.all != nil:
		return
	case len(names) == 0 && es.all != nil:
		return // better those that there were
	case len(names) == 0:
		names = []string{""} // which is on the connection of the client
	}
	former := es.all
	if len(names) == 1 || len(former) == 1 { // the only one is on the connection of the client
		es.removeLocked(former)
		former = nil
	}
	es.names, es.all = names, make([]*endpoint, 0, len(names))
	for _, name := range names {
		i := slices.IndexFunc(former, func(e *endpoint) bool { return e.name == name })
		if i < 0 {
			es.all = append(es.all, &endpoint{of: es, name: name})
			continue
		}
		es.all = append(es.all, former[i])
		former = slices.Delete(former, i, i+1)
	}
	es.removeLocked(former)
	es.first = rand.N(len(names)) // for the members to have about the same to do
}

// next returns the endpoint to ask, and how many there are: not one of those, if there is another, and not one that
// does not answer, if there is another.
func (es *endpoints) next(except []*endpoint) (e *endpoint, n int) {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.refreshLocked()
	now, best, least := time.Now(), es.first, 4
	for i := range es.all {
		i = (es.first + i) % len(es.all)
		rank := 0
		if slices.Contains(except, es.all[i]) {
			rank = 2
		}
		if now.Before(es.all[i].until) {
			rank++
		}
		if rank < least {
			best, least = i, rank
		}
	}
	if len(except) == 0 {
		es.first = best
	}
	return es.all[best], len(es.all)
}

// close closes the connections, of which none is used any more.
func (es *endpoints) close() {
	es.mu.Lock()
	defer es.mu.Unlock()
	es.closed = true
	es.removeLocked(es.all)
}

// removeLocked has endpoints not be used any more, but for what is under way.
func (es *endpoints) removeLocked(all []*endpoint) {
	for _, e := range all {
		e.removed = true
		e.retireLocked()
	}
}

// retireLocked has the endpoint be reached by another connection from now on.
func (e *endpoint) retireLocked() {
	l := e.link
	e.link = nil
	if l != nil && l.conn != e.of.client.ActiveConnection() {
		l.users++
		l.retired = true
		l.leaveLocked()
	}
}

// leaveLocked is the end of a use of the link.
func (l *link) leaveLocked() {
	if l.users--; l.retired && l.users == 0 {
		go func() { _ = l.conn.Close() }() // which may take seconds if nobody reads what it writes
	}
}

// use makes a call with a connection to the endpoint, and takes note of what becomes of that. caller is the context of
// who wants it: when that has ended, nothing is said about the endpoint.
func use[T any](ctx, caller context.Context, e *endpoint, f call[T]) (T, error) {
	l, err := e.take(ctx)
	if err != nil {
		var none T
		return none, err
	}
	began := time.Now()
	v, err := f(ctx, l)
	es := e.of
	es.mu.Lock()
	defer es.mu.Unlock()
	if !timedOut(err) || caller.Err() == nil && time.Since(began) >= leastPatience {
		e.judgeLocked(l, began, err)
	}
	l.leaveLocked()
	return v, err
}

// take returns the link of the endpoint, for one more user.
func (e *endpoint) take(ctx context.Context) (*link, error) {
	es := e.of
	es.mu.Lock()
	for {
		if l := e.link; l != nil {
			l.users++
			es.mu.Unlock()
			return l, nil
		}
		dialing := e.dialLocked()
		es.mu.Unlock()
		select {
		case <-dialing:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		es.mu.Lock()
		if err := e.err; err != nil && e.link == nil {
			es.mu.Unlock()
			return nil, err
		}
	}
}

// dialLocked dials, unless somebody does. That is done in the background, as it waits for a connection if the client
// was made with grpc.WithBlock.
func (e *endpoint) dialLocked() (done <-chan struct{}) {
	es := e.of
	if e.dialing != nil {
		return e.dialing
	}
	finished := make(chan struct{})
	if e.removed || len(es.all) == 1 {
		if e.removed {
			e.err = errRemoved
		} else {
			e.linkLocked(es.client.ActiveConnection())
		}
		close(finished)
		return finished
	}
	e.dialing = finished
	go func() {
		conn, err := e.dial()
		es.mu.Lock()
		defer es.mu.Unlock()
		e.dialing, e.err = nil, err
		switch {
		case err != nil:
		case e.removed:
			_ = conn.Close()
			e.err = errRemoved
		default:
			e.linkLocked(conn)
		}
		close(finished)
	}()
	return finished
}

// dial is clientv3.Client.Dial, which panics if the last endpoint is taken from the client in this moment.
func (e *endpoint) dial() (conn *grpc.ClientConn, err error) {
	defer func() {
		if recover() != nil {
			err = errRemoved
		}
	}()
	return e.of.stubs.dial(e.name)
}

// errRemoved means another endpoint.
var errRemoved = status.Error(codes.Unavailable, "etcd: the endpoint was taken from those of the client")

func (e *endpoint) linkLocked(conn *grpc.ClientConn) {
	e.link = &link{
		conn: conn, made: time.Now(), kv: e.of.stubs.kv(conn), leases: e.of.stubs.leases(conn),
		status: pb.NewMaintenanceClient(conn), watch: pb.NewWatchClient(conn), alive: e.of.stubs.alive(conn),
	}
}

// judgeLocked takes note of how a call on a link has ended that began at the given time.
func (e *endpoint) judgeLocked(l *link, began time.Time, err error) {
	silent := timedOut(err)
	if !silent {
		l.heard = time.Now()
	}
	switch {
	case !isOutage(err):
		e.silence, e.until = 0, time.Time{}
	case silent:
		e.suspectLocked(began)
	default:
		e.passOverLocked(began)
		e.wakeLocked(l)
	}
}

// suspect is for an endpoint that owes the answer to a call which began at the given time, for too long.
func (e *endpoint) suspect(began time.Time) {
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	e.suspectLocked(began)
}

// suspectLocked has the endpoint be passed over. If nothing at all has come on the connection since, a new one is made:
// this one may have been forgotten by what is between, or be about to be made by packets that were lost, which package
// grpc goes on to wait for. What is under way on it may still be answered.
func (e *endpoint) suspectLocked(began time.Time) {
	e.passOverLocked(began)
	if l := e.link; l != nil && l.heard.Before(began) && time.Since(l.made) > timeToConnect {
		e.retireLocked()
	}
}

func (e *endpoint) passOverLocked(began time.Time) {
	if began.After(e.until) { // and not while it was passed over
		e.silence = min(max(2*e.silence, firstSilence), longestSilence)
		e.until = time.Now().Add(e.silence)
	}
}

// wakeLocked has a connection be made again at once if there is none. Left alone, the client would wait for up to two
// minutes from one failed attempt to the next: longer than most leases last, and long after the server is back.
func (e *endpoint) wakeLocked(l *link) {
	const pause = 200 * time.Millisecond
	if time.Since(e.woken) > pause {
		e.woken = time.Now()
		l.conn.ResetConnectBackoff()
	}
}

// isAlive reports whether the endpoint answers, and knows of a leader, which is what all requests require (see
// newBackend). It is asked for what it has in memory: its status, too, it only tells between two writes to its disk.
func (e *endpoint) isAlive(ctx context.Context) bool {
	l, err := e.take(ctx)
	if err != nil {
		return false
	}
	_, err = once(ctx, e.of.logins, l.alive.MemberList, &pb.MemberListRequest{})
	e.of.mu.Lock()
	defer e.of.mu.Unlock()
	if err == nil {
		l.heard = time.Now()
	}
	l.leaveLocked()
	return err == nil
}
