package etcdlock

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watches tells when keys change. All of them share one stream of the server, whatever their number: the client's
// own Watcher takes two goroutines for each, and is reached by way of a third.
//
// Nothing is resumed when the stream breaks: all watches on it end, and who still wants to know looks at the key, and
// makes another. So a compaction does no harm, and no server is made to search its history for what has happened since
// a watch began.
type watches struct {
	endpoints *endpoints
	life      context.Context
	running   *group

	mu     sync.Mutex
	closed bool
	stream *watchStream // nil while there is none
}

// target is what a watch is for: that a key is deleted, or also that something is put there.
type target struct {
	span
	puts bool
}

// deletionOf is for when a key is deleted.
func deletionOf(key string) target { return target{span: span{from: key}} }

// watch tells each time that its target has changed.
type watch struct {
	stream *watchStream
	id     int64
	target target
	notify notice
}

// notice is called with an event, and for watchChanged with what has happened, in order.
type notice func(e watchEvent, by []*mvccpb.Event)

type watchEvent int

const (
	watchReady   watchEvent = iota // what happens to the target from now on will be told
	watchChanged                   // it has happened, and may again
	watchBroken                    // nothing more will be told; the last event of a watch
)

// add makes a watch that begins at the given revision, or now if that is 0, which is told by watchReady. notify is
// called by one goroutine at a time, and must not wait.
func (ws *watches) add(t target, revision int64, notify notice) *watch {
	ws.mu.Lock()
	if ws.closed {
		ws.mu.Unlock()
		notify(watchBroken, nil)
		return &watch{}
	}
	s := ws.stream
	if s == nil {
		s = ws.openLocked()
	}
	w := s.createLocked(t, revision, notify)
	ws.mu.Unlock()
	return w
}

// remove ends a watch. What is on its way may still be told.
func (ws *watches) remove(w *watch) {
	if w == nil {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.stream != nil {
		w.stream.removeLocked(w)
	}
}

// ping makes sure that the stream is alive: one that says nothing for a second after a ping is broken off.
//
// A ping is a watch that is cancelled as soon as it is made. The WatchProgressRequest that is meant for this is not
// answered while any watch of the stream is to begin later than the last revision, or lags behind.
func (ws *watches) ping() {
	const patience = time.Second
	ws.mu.Lock()
	defer ws.mu.Unlock()
	s := ws.stream
	if s == nil || len(s.watches) == 0 || s.pinged {
		return
	}
	s.pinged = true
	s.pings++
	ping := s.pings
	var w *watch
	w = s.createLocked(s.newest, 0, func(e watchEvent, _ []*mvccpb.Event) {
		if e == watchReady {
			ws.remove(w)
		}
	})
	time.AfterFunc(patience, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		if s.pinged && s.pings == ping {
			s.end()
		}
	})
}

// close ends all watches.
func (ws *watches) close() {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.closed = true
	if ws.stream != nil {
		ws.stream.end()
	}
}

// watchStream is guarded by watches.mu.
type watchStream struct {
	end     context.CancelFunc
	last    int64  // id given
	newest  target // watched
	watches map[int64]*watch
	out     []*pb.WatchRequest // to be sent
	wake    chan struct{}      // has room for one, and one in it if there is something in out
	pings   int                // so far
	pinged  bool               // and not heard of since
}

func (s *watchStream) createLocked(t target, revision int64, notify notice) *watch {
	s.last++
	s.newest = t
	w := &watch{stream: s, id: s.last, target: t, notify: notify}
	s.watches[w.id] = w
	create := &pb.WatchCreateRequest{
		Key: []byte(t.from), RangeEnd: []byte(t.end), WatchId: w.id, StartRevision: revision,
	}
	if !t.puts {
		create.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}
	}
	s.sendLocked(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}})
	return w
}

func (s *watchStream) sendLocked(r *pb.WatchRequest) {
	s.out = append(s.out, r)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *watchStream) removeLocked(w *watch) {
	if s.watches[w.id] == w {
		delete(s.watches, w.id)
		s.sendLocked(
			&pb.WatchRequest{
				RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: w.id}},
			},
		)
	}
}

func (ws *watches) openLocked() *watchStream {
	ctx, end := context.WithCancel(ws.life)
	s := &watchStream{end: end, watches: make(map[int64]*watch), wake: make(chan struct{}, 1)}
	ws.stream = s
	run := func() {
		e, _ := ws.endpoints.next(nil)
		_, _ = use(ctx, ws.life, e, func(ctx context.Context, l *link) (struct{}, error) {
			stream, err := l.watch.Watch(ctx)
			if err == nil && ws.running.start(func() { s.send(ctx, ws, stream) }) {
				err = ws.receive(s, stream)
			}
			return struct{}{}, err
		})
		end()
		ws.mu.Lock()
		ws.stream = nil
		broken := s.watches
		s.watches = nil
		ws.mu.Unlock()
		for _, w := range broken {
			w.notify(watchBroken, nil)
		}
	}
	if !ws.running.start(run) {
		end() // the Locker is closed
	}
	return s
}

// send sends what is to be sent, until the stream ends. It has a goroutine of its own, as a server that does not read
// makes it wait.
func (s *watchStream) send(ctx context.Context, ws *watches, stream pb.Watch_WatchClient) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		ws.mu.Lock()
		out := s.out
		s.out = nil
		ws.mu.Unlock()
		for _, r := range out {
			if stream.Send(r) != nil {
				s.end()
				return
			}
		}
	}
}

// receive tells what the server says, until the stream ends, and returns why it has.
func (ws *watches) receive(s *watchStream, stream pb.Watch_WatchClient) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if r.Created && r.Canceled {
			return nil // refused, without saying which: what comes of that is seen by looking at the keys
		}
		ws.mu.Lock()
		s.pinged = false
		w, event := s.watches[r.WatchId], watchReady
		switch {
		case w == nil, r.Created:
		case r.Canceled:
			event = watchBroken
			delete(s.watches, w.id)
		case w.target.changesBy(r):
			event = watchChanged
		default:
			w = nil // nothing calls for what this tells
		}
		ws.mu.Unlock()
		if w != nil {
			w.notify(event, r.Events)
		}
	}
}

// changesBy reports whether that is what the watch is for.
func (t target) changesBy(r *pb.WatchResponse) bool {
	for _, e := range r.Events {
		if t.puts || e.Type == clientv3.EventTypeDelete {
			return true
		}
	}
	return false
}
