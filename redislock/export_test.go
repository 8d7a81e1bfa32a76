package redislock

import (
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
)

// NewBackend returns the Backend behind New, for the conformance suite.
func NewBackend(rdb redis.UniversalClient) locker.Backend {
	b, err := Config{}.newBackend(rdb, newProcess(), nil)
	if err != nil {
		panic(err)
	}
	return b
}

// NewRedlockBackend returns the Backend behind NewRedlock.
func NewRedlockBackend(clients []redis.UniversalClient) locker.Backend {
	b, err := newRedlock(Config{}, clients, false)
	if err != nil {
		panic(err)
	}
	return b
}

// NamesOf returns the names of a lock and of its companions.
func NamesOf(prefix, key string) []string {
	n := namesOf(locker.Request{Prefix: prefix, Key: key}, "")
	return []string{n.lock, n.fence, n.queue, n.alive, n.gone}
}

// LineupSHA, ConfirmSHA and ReleaseSHA are how a proxy recognises requests.
var (
	LineupSHA  = defaultScripts.lineup.sha
	ConfirmSHA = defaultScripts.confirm.sha
	ReleaseSHA = defaultScripts.release.sha
)
