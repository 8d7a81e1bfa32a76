package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/pglock"
	"github.com/lockerkit/locker/redislock"
	"github.com/lockerkit/locker/redislock/redlock"
)

// open returns the program for the backend of cfg. A further store takes one more case here and a queue of its own;
// everything else knows only locker.Locker and Queue.
func open(cfg config, out io.Writer) (program, error) {
	var openStore func(config) (store, error)
	scheme, _, found := strings.Cut(cfg.backend, "://")
	if cfg.fleet() {
		if scheme != memory {
			cfg.key += "/" + rand.Text() // the story begins with job 1
		}
		s, err := newStage(cfg, scheme)
		if err != nil {
			return nil, err
		}
		return newFleet(cfg, s, out), nil
	}
	switch scheme {
	case "redis", "rediss", "unix", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel":
		openStore = openRedis
	case "redlock", "redlocks":
		openStore = openRedlock
	case "postgres", "postgresql":
		openStore = openPostgres
	case "etcd", "etcds":
		openStore = openEtcd
	default:
		what := fmt.Sprintf("%q is not a known kind of store", scheme)
		if !found { // and is not shown: it may have a password in it
			what = "that is no URL"
		}
		return nil, fmt.Errorf("-backend: %s; use memory, or a URL that begins with redis://, rediss://, unix://, "+
			"redis+cluster://, redis+sentinel://, redlock://, postgres://, postgresql://, etcd:// or etcds://", what)
	}
	// Times of day, so that the lines of several processes can be put in order.
	c := &console{out: out, clock: func() string { return time.Now().Format("15:04:05.000000") }}
	cfg.log = c.logger(cfg.name)
	s, err := openStore(cfg)
	if err != nil {
		return nil, err
	}
	return newProcess(cfg, s, c), nil
}

// store is what the workers of a fleet share.
type store struct {
	where string // for people
	locks locker.Locker
	watch *locker.Observer // of locks; to be filled in before they are used
	queue Queue
	close func() error // to be called when locks is closed
}

// newStore returns a store that has nothing but its Observer, and the options of its locks.
func newStore(cfg config) (store, []locker.Option) {
	watch := new(locker.Observer)
	log := cmp.Or(cfg.log, slog.Default())
	return store{watch: watch}, []locker.Option{locker.TTL(cfg.ttl), locker.Log(log), locker.Observe(watch)}
}

func openRedis(cfg config) (store, error) {
	o, err := redislock.ParseURL(cfg.backend)
	if err != nil {
		return store{}, fmt.Errorf("-backend: %w", err)
	}
	return newRedisStore(o, cfg), nil
}

func newRedisStore(o *redis.UniversalOptions, cfg config) store {
	o.ContextTimeoutEnabled = true     // else go-redis ignores the end of a context while it waits for an answer
	logging.Disable()                  // every failure reaches us as an error, and is reported
	rdb := redis.NewUniversalClient(o) // does not connect yet
	s, opts := newStore(cfg)
	s.where = "Redis"
	s.locks = redislock.New(rdb, opts...)
	s.queue = newRedisQueue(rdb, cfg.key)
	s.close = rdb.Close
	return s
}

// openRedlock keeps the lock on a majority of servers, and the queue, for which that would not do, on the first one.
// (Where a majority has to agree on the queue as well, it belongs into another kind of store.)
func openRedlock(cfg config) (store, error) {
	servers, err := redlock.ParseURL(cfg.backend)
	if err != nil {
		return store{}, fmt.Errorf("-backend: %w", err)
	}
	logging.Disable()
	var clients []redis.UniversalClient
	for _, o := range servers {
		o.ContextTimeoutEnabled = true
		clients = append(clients, redis.NewClient(o))
	}
	s, opts := newStore(cfg)
	s.where = fmt.Sprintf("Redis (a majority of %d servers)", len(clients))
	s.locks = redlock.New(clients, opts...)
	s.queue = newRedisQueue(clients[0], cfg.key)
	s.close = func() error {
		var errs []error
		for _, client := range clients {
			errs = append(errs, client.Close())
		}
		return errors.Join(errs...)
	}
	return s, nil
}

// connectWithin bounds how long a connection to Postgres may be in the making, unless the URL has a connect_timeout.
// The pool goes on with it when nobody waits any more, and has few places for connections.
const connectWithin = 5 * time.Second

func openPostgres(cfg config) (store, error) {
	if !utf8.ValidString(cfg.key) {
		return store{}, fmt.Errorf("-key %q: not UTF-8, as the name of a queue in Postgres has to be", cfg.key)
	}
	config, err := pgxpool.ParseConfig(cfg.backend)
	if err != nil {
		return store{}, invalid(cfg.backend, err)
	}
	config.ConnConfig.ConnectTimeout = cmp.Or(config.ConnConfig.ConnectTimeout, connectWithin)
	// Who waits to lead is connected by then: that takes longer than the rest of a handover.
	config.MinConns = max(config.MinConns, 1)
	pool, err := pgxpool.NewWithConfig(context.Background(), config) // does not wait for a connection
	if err != nil {
		return store{}, fmt.Errorf("-backend: %w", err)
	}
	s, opts := newStore(cfg)
	s.where = "Postgres"
	s.locks = pglock.New(pool, opts...) // connects by itself, like the pool
	s.queue = newPgQueue(pool, cfg.key)
	s.close = func() error { closePool(pool); return nil }
	return s, nil
}

// closePool closes the pool, but does not wait for long for a server that hangs: nothing depends on it.
func closePool(pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		pool.Close()
	}()
	select {
	case <-closed:
	case <-time.After(answerWithin):
	}
}

// errLogin: the mistake, if it is one, need not be in the command line.
var errLogin = errors.New("cannot log in")

func openEtcd(cfg config) (store, error) {
	config, err := etcdlock.ParseURL(cfg.backend)
	if err != nil {
		return store{}, fmt.Errorf("-backend: %w", err)
	}
	client, err := clientv3.New(config) // does not connect yet, unless there is a user to log in
	if err != nil {
		return store{}, fmt.Errorf("-backend: %w: %w", errLogin, err)
	}
	s, opts := newStore(cfg)
	s.where = "etcd"
	s.locks = etcdlock.New(client, opts...)
	s.queue = newEtcdQueue(client, cfg.key)
	s.close = client.Close
	return s, nil
}

// invalid says what is wrong with the URL of a backend, unless that might have a password in it: in a URL that makes no
// sense, it can be anywhere.
func invalid(backend string, err error) error {
	var u *url.Error
	if _, bad := url.Parse(backend); errors.As(bad, &u) {
		err = fmt.Errorf("not a valid URL: %w", u.Err)
		if strings.Contains(backend, "@") {
			err = errors.New("not a valid URL; special characters in user and password have to be percent-encoded")
		}
	}
	return fmt.Errorf("-backend: %w", err)
}
