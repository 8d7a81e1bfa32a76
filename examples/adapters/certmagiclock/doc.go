// Package certmagiclock is an example: a certmagic.Storage that locks with this library, whatever it stores in. Copy
// it.
//
// certmagic's interface knows locks by name alone. It has no place for a fencing token, though its documentation
// recommends them, and none for the news of a loss, so at a loss the work goes on, and another process may obtain the
// same certificate beside it, which certmagic says that it tolerates. What is told is told late: RenewLockLease, which
// certmagic calls before each attempt to obtain a certificate in the background, fails, and so does the attempt; and
// Unlock returns ErrLost, which certmagic logs. A lock that this process lost, and got again in another goroutine, is
// kept until both have unlocked it.
//
// TryLock is optional for certmagic, but not where a *certmagic.FileStorage or the like is embedded: that has a TryLock
// of its own, on locks of its own.
package certmagiclock
