// Package faketime runs the conformance suite on redislock and on Redlock in the fake time of testing/synctest, where
// neither a busy machine nor an unlucky moment decides what happens, and a minute of waiting takes a millisecond. The
// server lives in the test as well: miniredis, which runs our scripts with the Lua of package gopher-lua. What holds
// for it is not proven for Redis; the suite runs on that, too, in package redislock.
//
// It is a module of its own, as the server is nothing that users of locker should have in their go.sum.
package faketime
