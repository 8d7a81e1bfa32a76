// Package faketime runs the conformance suite on redislock in the fake time of testing/synctest, where neither a busy
// machine nor an unlucky moment decides what happens, and a minute of waiting takes a millisecond. The server lives in
// the test as well: miniredis, which runs our scripts with the Lua of package gopher-lua. What holds for it is not
// proven for Redis; the suite runs on that, too, in package redislock.
//
// It is run by hand, and not by scripts/test, as a run hangs now and then. go-redis keeps a subscription locked while
// it connects, and the time of a bubble stands still while somebody waits for a mutex, be it to close that
// subscription. If the dump of such a run has a goroutine in PubSub.Close that waits for one, run it again.
//
// It is a module of its own, as the server is nothing that users of locker should have in their go.sum.
package faketime
