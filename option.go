package locker

import (
	"fmt"
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

	// MaxKeyLen is the length in bytes of the longest key. Any 1 to MaxKeyLen bytes are a key, but for the few that a backend
	// reserves, if it does: redislock, for the names of what it keeps beside the locks.
	MaxKeyLen = 1024

	// MaxHolderLen is the length in bytes of the longest name that the option Holder accepts.
	MaxHolderLen = 128
)

// Option configures leases. Passed to New or to a backend's constructor it sets the default of a Locker; passed
// to Lock, TryLock, Do or Lead it is for that call.
type Option struct {
	apply       func(*settings) error
	constructor string // the option's name, if only a constructor takes it
}

type settings struct {
	ttl     time.Duration
	noRenew bool
	prefix  string
	holder  string
}

// TTL sets for how long a lease is valid unless it is renewed, which happens by itself three times per TTL: in
// effect, how long a dead holder blocks the key. MinTTL to MaxTTL; DefaultTTL without the option. A backend that cannot
// keep d exactly returns ErrInvalidOption.
func TTL(d time.Duration) Option {
	return Option{apply: func(s *settings) error {
		if d < MinTTL || d > MaxTTL {
			return fmt.Errorf("%w: TTL(%v) is not within %v to %v", ErrInvalidOption, d, MinTTL, MaxTTL)
		}
		s.ttl = d
		return nil
	}}
}

// NoRenew makes the lease end by itself after its TTL: nobody renews it, and its Deadline never moves.
func NoRenew() Option {
	return Option{apply: func(s *settings) error { s.noRenew = true; return nil }}
}

// Prefix is put before every key by this Locker, so that several applications can share a store. It is for
// constructors only. Two Lockers exclude one another where prefix and key joined together are equal: choose
// prefixes that are not the beginning of one another, for instance by ending each with ":".
func Prefix(s string) Option {
	return Option{constructor: "Prefix", apply: func(set *settings) error {
		if len(s) > MaxKeyLen {
			return fmt.Errorf("%w: Prefix of %d bytes, at most %d are accepted", ErrInvalidOption, len(s), MaxKeyLen)
		}
		set.prefix = s
		return nil
	}}
}

// Holder gives the holder of the lease a human-readable name: whoever is refused the key is told it, in Error.Holder. It
// plays no part in ownership, which is decided by a random Owner id, and need not be unique. At most MaxHolderLen bytes of
// valid UTF-8.
func Holder(name string) Option {
	return Option{apply: func(s *settings) error {
		if len(name) > MaxHolderLen || !utf8.ValidString(name) {
			return fmt.Errorf("%w: Holder(%q) is longer than %d bytes or not UTF-8", ErrInvalidOption, name, MaxHolderLen)
		}
		s.holder = name
		return nil
	}}
}

// defaults returns the settings that opts, passed to a constructor, amount to.
func defaults(opts []Option) (settings, error) {
	s := settings{ttl: DefaultTTL}
	for _, o := range opts {
		if err := o.set(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// with returns s changed by opts, which were passed to a call.
func (s settings) with(opts []Option) (settings, error) {
	for _, o := range opts {
		if o.constructor != "" {
			return s, fmt.Errorf("%w: %s is for the constructor of a Locker, not for a single call", ErrInvalidOption, o.constructor)
		}
		if err := o.set(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}

func (o Option) set(s *settings) error {
	if o.apply == nil {
		return fmt.Errorf("%w: the zero Option", ErrInvalidOption)
	}
	return o.apply(s)
}
