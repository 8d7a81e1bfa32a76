package redlock

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/internal/backends"
	"github.com/lockerkit/locker/redislock/internal/conn"
	"github.com/lockerkit/locker/redislock/internal/server"
)

// DefaultPrefix is the prefix of keys unless the option locker.Prefix says otherwise.
const DefaultPrefix = server.DefaultPrefix

// Config is for what New and Open do not ask. Its zero value is what they use. A Config that cannot be honoured makes
// every Lock return ErrInvalidOption, and Open, too.
type Config struct {
	// ChannelPrefix is as in redislock.Config.
	ChannelPrefix string

	// TokenRetention is as in redislock.Config. On a Redlock, a short one also needs the clocks of the servers to be
	// closer together than that.
	TokenRetention time.Duration
}

// New returns a Client that keeps each lock on a majority of independent servers. Each client is for one server
// that shares nothing with the others: no replication, and better no machine. Three and five are usual numbers; an even
// one is no safer than the odd one below it. Every process must be given the same servers.
//
// The Client uses the connections of the clients and never closes them, as with redislock.New. Without clients, with
// one that is nil, with the same one twice, or with two *redis.Client for the same address, every Lock returns
// ErrInvalidOption. That two are for the same server cannot be noticed otherwise.
func New(clients []redis.UniversalClient, opts ...locker.Option) *locker.Client {
	return Config{}.New(clients, opts...)
}

// Open is New with a client of its own for each server of a URL, see ParseURL. Close closes them.
//
// It connects, and fails now if locks cannot be had: it locks a key of its own for a moment, and subscribes to the
// channel by which waiters are called. A majority of the servers has to do. The error is of the class
// locker.ErrUnavailable, ErrDenied or ErrUnfit, or an ErrInvalidOption for a URL or options that cannot be used. ctx
// bounds Open and nothing else.
func Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	return Config{}.Open(ctx, url, opts...)
}

// New is the function New with this Config.
func (c Config) New(clients []redis.UniversalClient, opts ...locker.Option) *locker.Client {
	b, err := newBackend(c, clients, false)
	if err != nil {
		return server.ClientOf(backends.Unusable{Name: "redlock", Err: err}, opts)
	}
	return server.ClientOf(b, opts)
}

// Open is the function Open with this Config.
func (c Config) Open(ctx context.Context, url string, opts ...locker.Option) (*locker.Client, error) {
	servers, err := ParseURL(url)
	if err != nil {
		return nil, err
	}
	var clients []redis.UniversalClient
	for _, server := range servers {
		client := redis.NewClient(server)
		conn.Redialing(client)
		clients = append(clients, client)
	}
	b, err := newBackend(c, clients, true)
	if err != nil {
		for _, client := range clients {
			_ = client.Close()
		}
		return nil, fmt.Errorf("redlock: %w", err)
	}
	return server.Open(ctx, b, opts)
}

// newBackend returns the backend, which closes the clients with itself if they are its own.
func newBackend(config Config, clients []redis.UniversalClient, own bool) (*redlock, error) {
	if len(clients) == 0 {
		return nil, fmt.Errorf("%w: a Redlock without servers", locker.ErrInvalidOption)
	}
	b := &redlock{process: server.NewProcess(), quorum: len(clients)/2 + 1}
	for i, client := range clients {
		name := "server " + strconv.Itoa(i+1)
		if c, ok := client.(*redis.Client); ok {
			name = c.Options().Addr
		}
		// What go-redis calls "FailoverClient" may be anything.
		sameAddress := strings.ContainsAny(name, ":/") &&
			slices.ContainsFunc(b.nodes, func(n *node) bool { return n.name == name })
		if sameAddress || reflect.ValueOf(client).Comparable() && slices.Contains(clients[:i], client) {
			return nil, fmt.Errorf("%w: %s is there twice: a majority has to be one of different servers",
				locker.ErrInvalidOption, name)
		}
		var closeClient func() error
		if own {
			closeClient = client.Close
		}
		one, err := server.Config(config).New(client, b.process, closeClient)
		if err != nil {
			return nil, fmt.Errorf("client %d of the Redlock: %w", i+1, err)
		}
		n := &node{Server: one, name: name}
		one.Outbox.Call = func(ctx context.Context, request func(ctx context.Context) error) error {
			return n.call(ctx, conn.MaxTimeout, request)
		}
		b.nodes = append(b.nodes, n)
	}
	return b, nil
}
