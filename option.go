package locker

import (
	"fmt"
	"log/slog"
	"time"
	"unicode/utf8"
)

const (
	// DefaultTTL is the TTL of a lease unless the option TTL says otherwise.
	DefaultTTL = 10 * time.Second

	// MinTTL is the shortest TTL accepted: below it, network and scheduling delays eat the lease.
	MinTTL = 20 * time.Millisecond

	// MaxTTL is the longest TTL accepted. A TTL bounds how long a dead holder blocks the others; a living one
	// renews its lease and may hold it for years.
	MaxTTL = 30 * 24 * time.Hour

	// MaxKeyLen is the length in bytes of the longest key. A key is any 1 to MaxKeyLen bytes; redislock reserves a few,
	// for the names of what it keeps beside the locks.
	MaxKeyLen = 1024

	// MaxSlots is the greatest number that the option Slots accepts.
	MaxSlots = 10_000

	// MaxHolderLen is the length in bytes of the longest name that the option Holder accepts.
	MaxHolderLen = 128
)

// Option configures a Client. It is passed to New, or to the constructor of a backend, and sets the default for all
// leases.
type Option interface {
	apply(*settings) error
}

// CallOption configures one lease. It is passed to Lock, TryLock, Do or Lead. Each is an Option, too: passed to a
// constructor, it is the default of the Client.
type CallOption interface {
	Option
	call()
}

// option is an Option that is not for a single call.
type option func(*settings) error

func (o option) apply(s *settings) error { return o(s) }

// callOption is an Option that is for a single call, too.
type callOption func(*settings) error

func (o callOption) apply(s *settings) error { return o(s) }
func (callOption) call()                     {}

// settings is what the options of a Client or a call amount to.
type settings struct {
	ttl       time.Duration
	noRenew   bool
	prefix    string
	holder    string
	mode      Mode
	slots     int
	minHold   time.Duration
	observers []*Observer
}

// TTL sets for how long a lease is valid unless it is renewed, which happens by itself three times per TTL: in
// effect, how long a dead holder blocks the key. MinTTL to MaxTTL; DefaultTTL without the option. A backend that cannot
// keep d exactly returns ErrInvalidOption.
func TTL(d time.Duration) CallOption {
	return callOption(func(s *settings) error {
		if d < MinTTL || d > MaxTTL {
			return fmt.Errorf("%w: TTL(%v) is not within %v to %v", ErrInvalidOption, d, MinTTL, MaxTTL)
		}
		s.ttl = d
		return nil
	})
}

// NoRenew makes the lease end by itself after its TTL: nobody renews it, and its Deadline never moves.
func NoRenew() CallOption {
	return callOption(func(s *settings) error { s.noRenew = true; return nil })
}

// MinHold keeps the key from others until d has passed since it was granted, also if it is unlocked before: for a job
// that is started by several machines at the same time, and takes less time than their clocks differ by. The slower
// machine finds the key locked, and skips the job. Unlock returns at once, and the lease has ended then; only the key
// stays taken. It does not make the lease longer: if the process dies before Unlock, the key is free after its TTL.
//
// Break frees a key that is kept. What was revoked while it was held is not kept. d is more than 0 and at most MaxTTL,
// or else ErrInvalidOption. memlock, redislock and etcdlock can do it. With another backend, Lock and TryLock
// return errors.ErrUnsupported: see Features.
func MinHold(d time.Duration) CallOption {
	return callOption(func(s *settings) error {
		if d <= 0 || d > MaxTTL {
			return fmt.Errorf("%w: MinHold(%v) is not within 0 to %v", ErrInvalidOption, d, MaxTTL)
		}
		s.minHold = d
		return nil
	})
}

// Shared lets the lock be held by any number of those who ask for it so, and by nobody else: they are readers, and
// those who ask for it without this option are writers. Whoever waits, of either kind, is not overtaken. A reader's
// lease is its own: it ends or is lost without the others. A reader cannot become a writer: unlock, and lock again.
// (Two who wait for each other's end would never become one.)
//
// The fencing token is greater than the tokens of all who held the lock before, and different for each reader. A
// resource compares a reader's token with the token of the last writer, and does not store it there: another reader may
// have a smaller one. To refuse a late writer as soon as a reader has been there, it keeps the greatest token of
// anybody beside it, and compares a writer's token with that.
//
// memlock, redislock, pglock and etcdlock have such locks. With a backend that has none, such as redlock, Lock and
// TryLock return errors.ErrUnsupported: see Features.
func Shared() CallOption {
	return callOption(func(s *settings) error { s.mode, s.slots = ModeShared, 0; return nil })
}

// Slots lets the lock be held by up to n who ask for it so, and by nobody else: a semaphore whose permits are leases.
// Lease.Slot tells which of the numbers 0 to n-1 a holder has; no other holder has it at the same time. A slot whose
// holder dies is free after its TTL. Whoever waits is not overtaken.
//
// All should ask for the same n. Where they do not, one who asks for n gets a slot while there are fewer than n
// holders. On Postgres it gets one while one of the slots 0 to n-1 is free, and nobody gets one beside a holder of
// Slots(1). Slots(1) excludes everybody, like a lock without the option. Keep a fence for each slot: a token is greater
// than the tokens of all who had any slot before. n is 1 to MaxSlots, or else ErrInvalidOption.
//
// All backends but Redlock have such locks. With one that has none, Lock and TryLock return errors.ErrUnsupported: see
// Features.
func Slots(n int) CallOption {
	return callOption(func(s *settings) error {
		if n < 1 || n > MaxSlots {
			return fmt.Errorf("%w: Slots(%d), must be 1 to %d", ErrInvalidOption, n, MaxSlots)
		}
		s.mode, s.slots = ModeSlots, n
		return nil
	})
}

// Holder gives the holder of the lease a name for people: whoever is refused the key is told it, in Error.Holder. It
// plays no part in ownership, which is decided by a random Owner id, and need not be unique. At most MaxHolderLen bytes
// of valid UTF-8.
func Holder(name string) CallOption {
	return callOption(func(s *settings) error {
		if len(name) > MaxHolderLen || !utf8.ValidString(name) {
			return fmt.Errorf("%w: Holder(%q) is longer than %d bytes or not UTF-8", ErrInvalidOption, name, MaxHolderLen)
		}
		s.holder = name
		return nil
	})
}

// Prefix is put before every key by this Client, so that several applications can share a store. Two Clients exclude
// one another where prefix and key joined together are equal: choose prefixes that are not the beginning of one
// another, for instance by ending each with ":". At most MaxKeyLen bytes.
func Prefix(prefix string) Option {
	return option(func(s *settings) error {
		if len(prefix) > MaxKeyLen {
			return fmt.Errorf("%w: Prefix of %d bytes, at most %d are accepted", ErrInvalidOption, len(prefix), MaxKeyLen)
		}
		s.prefix = prefix
		return nil
	})
}

// Observe has o told what becomes of locks and leases. It may be given several times: each Observer is told, in the
// order in which they were given.
func Observe(o *Observer) Option {
	return option(func(s *settings) error {
		if o == nil {
			return fmt.Errorf("%w: Observe(nil)", ErrInvalidOption)
		}
		s.observers = append(s.observers, o)
		return nil
	})
}

// Log is Observe with an Observer that logs: lost leases as errors. Failed renewals, failed unlocks and what Lock and
// Lead ride out are warnings, the first of each streak, and so is each Revoke and Break of this Client. Everything else
// has the level Debug.
func Log(logger *slog.Logger) Option {
	if logger == nil {
		return option(func(*settings) error { return fmt.Errorf("%w: Log(nil)", ErrInvalidOption) })
	}
	return Observe(logTo(logger))
}

// defaults returns the settings that opts, passed to a constructor, amount to.
func defaults(opts []Option) (settings, error) {
	s := settings{ttl: DefaultTTL}
	for _, o := range opts {
		if err := s.set(o); err != nil {
			return s, err
		}
	}
	return s, nil
}

// with returns s changed by opts, which were passed to a call.
func (s settings) with(opts []CallOption) (settings, error) {
	for _, o := range opts {
		if err := s.set(o); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *settings) set(o Option) error {
	if o == nil {
		return fmt.Errorf("%w: an option is nil", ErrInvalidOption)
	}
	return o.apply(s)
}
