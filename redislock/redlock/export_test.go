package redlock

import (
	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock/internal/scripts"
)

// NewBackend returns the Backend behind New, for the conformance suite.
func NewBackend(clients []redis.UniversalClient) locker.Backend {
	b, err := newBackend(Config{}, clients, false)
	if err != nil {
		panic(err)
	}
	return b
}

// LineupSHA, ConfirmSHA and ReleaseSHA are how a proxy recognises requests.
var (
	LineupSHA  = scripts.Default().LineUp.SHA
	ConfirmSHA = scripts.Default().Confirm.SHA
	ReleaseSHA = scripts.Default().Release.SHA
)

// ContestFor is for how long a TryLock that meets others goes on, at the most.
const ContestFor = contestFor
