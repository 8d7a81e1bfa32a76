// Package fencing has resources that defend themselves: a row in Postgres, a hash in Redis, and what is behind an HTTP
// API. Each remembers the greatest fencing token that it has seen, and refuses whoever comes with a smaller one.
// Objects in S3 are in package objects beside it, a module of its own. See docs/fencing.md.
package fencing

import "errors"

// ErrStale says that the resource has seen a greater token: the one who writes holds the lock no longer.
var ErrStale = errors.New("stale token: another holder has been here")
