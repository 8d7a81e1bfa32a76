package faketime

import (
	"sync"
	"testing"
)

// PerTest is what each test has of its own, as it has to live in its bubble.
type PerTest[T any] struct{ all sync.Map }

// Of returns that of a test, which is made when it is first asked for.
func (p *PerTest[T]) Of(t *testing.T, create func() T) T {
	if v, ok := p.all.Load(t); ok {
		return v.(T)
	}
	v := create()
	p.all.Store(t, v)
	t.Cleanup(func() { p.all.Delete(t) })
	return v
}
