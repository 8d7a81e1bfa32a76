package pglock

import (
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lockerkit/locker"
)

// NewBackend returns the Backend of the Locker that New returns.
func NewBackend(pool *pgxpool.Pool) locker.Backend { return Config{}.forPool(pool) }

// NewBackend is like the function NewBackend.
func (c Config) NewBackend(pool *pgxpool.Pool) locker.Backend { return c.forPool(pool) }

// InLine returns how many calls of Wait are in line for a name at a Backend.
func InLine(b locker.Backend, name string) int {
	p := b.(*backend)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.slots[Key(name)]; s != nil {
		return len(s.line)
	}
	return 0
}
