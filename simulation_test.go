package locker_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockerkit/locker"
)

// The simulation has several Clients over one store whose answers come late, get lost or never come, and which takes
// locks away; all in fake time, with random users. What a Client promises is checked at each grant.

// modelLock is a lock in the store.
type modelLock struct {
	g       locker.Grant
	expires time.Time
}

// model is the store.
type model struct {
	t        *testing.T
	features locker.Features
	chaos    float64     // the probability of what goes wrong
	quiet    atomic.Bool // nothing does any more

	mu    sync.Mutex
	token uint64
	held  map[string]*modelLock
	dead  map[locker.Owner]bool    // released: late requests are refused
	wake  map[string]chan struct{} // closed when a key is free

	// What the users have, and have done.
	leases      map[locker.Owner]*locker.Lease
	dones       map[locker.Owner]<-chan struct{}
	ctxs        map[locker.Owner]context.Context
	unlocked    map[locker.Owner]bool
	expiredTold map[locker.Owner]bool
}

func newModel(t *testing.T, f locker.Features) *model {
	return &model{
		t: t, features: f,
		held: map[string]*modelLock{}, dead: map[locker.Owner]bool{}, wake: map[string]chan struct{}{},
		leases: map[locker.Owner]*locker.Lease{}, dones: map[locker.Owner]<-chan struct{}{},
		ctxs: map[locker.Owner]context.Context{}, unlocked: map[locker.Owner]bool{}, expiredTold: map[locker.Owner]bool{},
	}
}

func (m *model) Features() locker.Features { return m.features }
func (m *model) Close() error              { return nil }
func (m *model) Expired(gs []locker.Grant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range gs {
		m.expiredTold[g.Owner] = true
		if d := m.dones[g.Owner]; d != nil {
			select {
			case <-d:
			default:
				m.t.Error("Expired before Done")
			}
		}
		if e := m.held[g.Key]; e != nil && e.g.Owner == g.Owner {
			m.free(g.Key)
		}
	}
}

func (m *model) free(key string) {
	delete(m.held, key)
	if c := m.wake[key]; c != nil {
		close(c)
		delete(m.wake, key)
	}
}

// delay takes its time, and returns an error if that was more than ctx has.
func (m *model) delay(ctx context.Context) error {
	d := rand.N(2 * time.Millisecond)
	if rand.Float64() < m.trouble() {
		d = rand.N(400 * time.Millisecond)
	}
	if rand.Float64() < m.trouble()/4 {
		d = rand.N(5 * time.Second)
	}
	if m.features.HeedsContext {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	time.Sleep(d)
	return nil
}

func (m *model) try(r locker.Request) (locker.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	e := m.held[r.Key]
	if e != nil && !now.Before(e.expires) {
		m.free(r.Key)
		e = nil
	}
	if m.dead[r.Owner] {
		return locker.Grant{}, locker.NotAcquired(errFault)
	}
	if e != nil && e.g.Owner == r.Owner {
		e.expires = now.Add(r.TTL)
		return e.g, nil
	}
	if e != nil {
		return locker.Grant{}, &locker.Held{Remaining: e.expires.Sub(now)}
	}
	for o, l := range m.leases {
		if l.Key() != r.Key || o == r.Owner {
			continue
		}
		select {
		case <-m.dones[o]:
		default:
			m.t.Errorf("granted to %v while %v believes in its lease until %v (now %v), err %v", r.Owner, o,
				l.Deadline(), now, l.Err())
		}
		select {
		case <-m.ctxs[o].Done():
		default:
			m.t.Errorf("granted to %v while the ctx of %v lasts (err %v)", r.Owner, o, l.Err())
		}
		delete(m.leases, o)
	}
	m.token++
	g := locker.Grant{Request: r, Token: m.token}
	m.held[r.Key] = &modelLock{g: g, expires: now.Add(r.TTL)}
	return g, nil
}

func (m *model) Acquire(ctx context.Context, r locker.Request) (locker.Grant, error) {
	sent := time.Now()
	if err := m.delay(ctx); err != nil {
		return locker.Grant{}, err
	}
	if rand.Float64() < m.trouble() {
		return locker.Grant{}, errFault
	}
	g, err := m.try(r)
	if errors.Is(err, locker.ErrLocked) {
		return g, err
	}
	if e := m.delay(ctx); e != nil {
		return locker.Grant{}, e
	}
	if rand.Float64() < m.trouble() {
		return locker.Grant{}, errFault
	}
	g.Sent = sent
	return g, err
}

func (m *model) Wait(ctx context.Context, r locker.Request) (locker.Grant, error) {
	for {
		m.mu.Lock()
		c := m.wake[r.Key]
		if c == nil {
			c = make(chan struct{})
			m.wake[r.Key] = c
		}
		m.mu.Unlock()
		g, err := m.Acquire(ctx, r)
		if !errors.Is(err, locker.ErrLocked) {
			return g, err
		}
		r.ReportHolder("")
		select {
		case <-c:
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return locker.Grant{}, context.Cause(ctx)
		}
	}
}

func (m *model) Renew(ctx context.Context, gs []locker.Grant, done func(int, locker.Renewal)) {
	m.mu.Lock()
	for _, g := range gs {
		if m.unlocked[g.Owner] {
			m.t.Error("renewed after Unlock had returned")
		}
		if m.expiredTold[g.Owner] {
			m.t.Error("Renew called after Expired")
		}
	}
	m.mu.Unlock()
	if err := m.delay(ctx); err != nil {
		return
	}
	var wg sync.WaitGroup
	for _, i := range rand.Perm(len(gs)) {
		if rand.Float64() < m.trouble() {
			continue // no result
		}
		wg.Go(func() {
			if rand.Float64() < m.trouble() {
				_ = m.delay(ctx)
			}
			m.mu.Lock()
			e := m.held[gs[i].Key]
			var err error
			if e == nil || e.g.Owner != gs[i].Owner || !time.Now().Before(e.expires) {
				err = locker.ErrLost
			} else {
				e.expires = time.Now().Add(gs[i].TTL)
			}
			m.mu.Unlock()
			if m.delay(ctx) != nil {
				return
			}
			done(i, locker.Renewal{Err: err})
		})
	}
	wg.Wait()
}

func (m *model) Release(ctx context.Context, g locker.Grant) error {
	if err := m.delay(ctx); err != nil {
		return err
	}
	if rand.Float64() < m.trouble() {
		return errFault
	}
	m.mu.Lock()
	e := m.held[g.Key]
	m.dead[g.Owner] = true
	err := locker.ErrLost
	if e != nil && e.g.Owner == g.Owner {
		m.free(g.Key)
		err = nil
	}
	m.mu.Unlock()
	if err := m.delay(ctx); err != nil {
		return err
	}
	if rand.Float64() < m.trouble() {
		return errFault
	}
	return err
}

func simulate(t *testing.T, f locker.Features, ttl time.Duration, chaos float64, lose bool) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(t, f)
		m.chaos = chaos
		var lds sync.Map
		o := &locker.Observer{
			LockDone: func(_ context.Context, i locker.LockDoneInfo) {
				if i.Err == nil {
					n, _ := lds.LoadOrStore(i.Token, new([2]int))
					m.mu.Lock()
					n.(*[2]int)[0]++
					m.mu.Unlock()
				}
			},
			LeaseDone: func(i locker.LeaseDoneInfo) {
				n, _ := lds.LoadOrStore(i.Token, new([2]int))
				m.mu.Lock()
				n.(*[2]int)[1]++
				m.mu.Unlock()
			},
		}
		var clients []*locker.Client
		for i := range 4 {
			clients = append(clients, locker.New(m, locker.TTL(ttl), locker.Observe(o), locker.Holder(fmt.Sprint(i))))
		}
		var wg sync.WaitGroup
		unfreed := 0
		for w := range 12 {
			wg.Go(func() {
				for range 15 {
					l := clients[w%len(clients)]
					key := fmt.Sprint("k", rand.N(3))
					ctx, cancel := context.WithTimeout(context.Background(), rand.N(3*time.Second))
					var lease *locker.Lease
					var err error
					if rand.N(2) == 0 {
						lease, err = l.Lock(ctx, key)
					} else {
						lease, err = l.TryLock(ctx, key)
					}
					cancel()
					if err != nil {
						if errors.Is(err, locker.ErrLost) || errors.Is(err, locker.ErrUnfit) {
							t.Error(err)
						}
						var e *locker.Error
						if !errors.As(err, &e) {
							t.Errorf("%T", err)
						}
						time.Sleep(rand.N(50 * time.Millisecond))
						continue
					}
					owner := locker.GrantOf(lease).Owner
					lctx, lcancel := lease.Context(context.Background())
					m.mu.Lock()
					m.leases[owner], m.dones[owner], m.ctxs[owner] = lease, lease.Done(), lctx
					m.mu.Unlock()
					select {
					case <-time.After(rand.N(2 * ttl)):
					case <-time.After(rand.N(time.Second)):
					case <-lease.Done():
					}
					if lose && rand.N(4) == 0 {
						r := locker.GrantOf(lease).Request
						go func() {
							r.ReportLost(errFault)
							select {
							case <-lease.Done():
							default:
								t.Error("ReportLost returned, Done open")
							}
							m.mu.Lock()
							if e := m.held[key]; e != nil && e.g.Owner == owner {
								m.free(key)
							}
							m.mu.Unlock()
						}()
					}
					err = lease.Unlock()
					m.mu.Lock()
					m.unlocked[owner] = true
					m.mu.Unlock()
					lcancel()
					if err != nil {
						m.mu.Lock()
						unfreed++
						m.mu.Unlock()
					}
				}
			})
		}
		if rand.N(2) == 0 {
			wg.Go(func() {
				time.Sleep(rand.N(10 * time.Second))
				a := time.Now()
				_ = clients[0].Close()
				if d := time.Since(a); d > 3*ttl+time.Second {
					t.Errorf("Close took %v", d)
				}
			})
		}
		wg.Wait()
		// everything given back?
		m.quiet.Store(true)
		time.Sleep(10 * time.Minute)
		m.mu.Lock()
		if ttl >= time.Hour && len(m.held) > 0 {
			for k, e := range m.held {
				if e.g.Holder == "0" {
					continue
				}
				t.Errorf("%s held by %v, unlocked %v, released %v (unfreed %d)", k, e.g.Owner, m.unlocked[e.g.Owner],
					m.dead[e.g.Owner], unfreed)
			}
		}
		m.mu.Unlock()
		for _, c := range clients {
			_ = c.Close()
		}
		time.Sleep(time.Minute)
		lds.Range(func(k, v any) bool {
			if n := v.(*[2]int); n[0] != 1 || n[1] != 1 {
				t.Errorf("token %v: LockDone %d, LeaseDone %d", k, n[0], n[1])
			}
			return true
		})
	})
}

// TestSimulation: no grant while the Done or a context of an earlier holder is open; no renewal after Unlock or after
// the backend was told of an expiry; each lease is observed once, from beginning to end; nothing is left in the end.
func TestSimulation(t *testing.T) {
	for i, chaos := range []float64{0, 0.02, 0.1, 0.3} {
		for _, heeds := range []bool{false, true} {
			for _, queue := range []bool{false, true} {
				for _, ttl := range []time.Duration{20 * time.Millisecond, 300 * time.Millisecond, 30 * 24 * time.Hour} {
					f := locker.Features{HeedsContext: heeds, Queue: queue, Expirer: i%2 == 0}
					t.Run(fmt.Sprintf("%+v/%v/%v", f, ttl, chaos), func(t *testing.T) {
						t.Parallel()
						simulate(t, f, ttl, chaos, i%2 == 1)
					})
				}
			}
		}
	}
}

// trouble is the probability of trouble now.
func (m *model) trouble() float64 {
	if m.quiet.Load() {
		return 0
	}
	return m.chaos
}
