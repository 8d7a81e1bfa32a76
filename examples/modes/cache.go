package modes

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lockerkit/locker"
)

// Cache is a table that many read, and that somebody has to rebuild when it is too old, which takes long.
type Cache struct {
	Locker locker.Locker
	Key    string
	Table  *Table // which all processes share
	MaxAge time.Duration
	Build  func(ctx context.Context) (rows map[string]string, err error) // ctx ends if the lock is lost
}

// builtAt is the row that says how old the others are. It is written last.
const builtAt = "built at"

// Get returns a row. Any number of readers do this at the same time. Who finds the table too old has to unlock before
// it locks as a writer: two readers that waited for each other to leave would wait for ever. So it looks again then:
// somebody else may have been faster.
func (c *Cache) Get(ctx context.Context, name string) (row string, err error) {
	read := func(ctx context.Context) (err error) {
		row, err = c.look(locker.FromContext(ctx).Token(), name)
		return err
	}
	if err = locker.Do(ctx, c.Locker, c.Key, read, locker.Shared()); !errors.Is(err, errOld) {
		return row, err
	}
	err = locker.Do(ctx, c.Locker, c.Key, func(ctx context.Context) error {
		if err := read(ctx); !errors.Is(err, errOld) {
			return err
		}
		rows, err := c.rebuild(ctx, locker.FromContext(ctx).Token())
		row = rows[name]
		return err
	})
	return row, err
}

// look reads a row, if the table is not too old, or half of a new one.
func (c *Cache) look(token uint64, name string) (row string, err error) {
	text, err := c.Table.Get(token, builtAt)
	if err != nil {
		return "", err
	}
	if built, err := time.Parse(time.RFC3339Nano, text); err != nil || time.Since(built) > c.MaxAge {
		return "", errOld
	}
	return c.Table.Get(token, name)
}

// rebuild writes one row after the other: that is what readers must not see.
func (c *Cache) rebuild(ctx context.Context, token uint64) (rows map[string]string, err error) {
	begun := time.Now()
	if rows, err = c.Build(ctx); err != nil {
		return nil, err
	}
	if err := c.Table.Clear(token); err != nil {
		return nil, err
	}
	for name, row := range rows {
		if ctx.Err() != nil { // the lock is lost, say
			return nil, context.Cause(ctx)
		}
		if err := c.Table.Set(token, name, row); err != nil {
			return nil, err
		}
	}
	return rows, c.Table.Set(token, builtAt, begun.Format(time.RFC3339Nano))
}

// Table has rows of text behind a fence of two numbers. A reader's token is compared with that of the last writer, and
// not put in its place: another reader may have a smaller one. But it shuts out the writers before it.
type Table struct {
	mu              sync.Mutex
	rows            map[string]string
	writer, anybody uint64 // the greatest tokens
}

// Get reads a row.
func (t *Table) Get(token uint64, name string) (row string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token < t.writer {
		return "", ErrStale
	}
	t.anybody = max(t.anybody, token)
	return t.rows[name], nil
}

// Set writes a row.
func (t *Table) Set(token uint64, name, row string) error {
	return t.write(token, func() { t.rows[name] = row })
}

// Clear deletes all rows, and not the fence.
func (t *Table) Clear(token uint64) error {
	return t.write(token, func() { clear(t.rows) })
}

func (t *Table) write(token uint64, change func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if token < t.anybody {
		return ErrStale
	}
	t.writer, t.anybody = token, token
	if t.rows == nil {
		t.rows = make(map[string]string)
	}
	change()
	return nil
}
