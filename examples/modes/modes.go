// Package modes has three uses of locks that are not about one holder of one key: a cache that many read and one
// rebuilds (Cache, with locker.Shared), crawlers that divide a site among them (Crawl, with locker.Slots), and a
// transfer between two accounts (Transfer, with locker.DoAll). Each takes any locker.Locker, and has a resource that
// refuses those who have lost their lock and do not know it yet: here in memory, where a program has its database. See
// docs/modes.md.
package modes

import "errors"

// ErrStale says that a token is too small: the one who comes with it holds the lock no longer.
var ErrStale = errors.New("stale token: another holder has been here")

var errOld = errors.New("the table is too old")
