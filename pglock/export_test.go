package pglock

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
)

// NewBackend returns the Backend of the Locker that New returns.
func NewBackend(pool *pgxpool.Pool) locker.Backend { return Config{}.forPool(pool) }
