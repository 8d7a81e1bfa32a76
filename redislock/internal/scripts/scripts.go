// Package scripts has the Lua scripts of package redislock, the names of what they keep in Redis, and what they take.
package scripts

import (
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	_ "embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The scripts. Each operation is one of them, so that it is atomic. They use no command newer than Redis 6.2, write
// only under the keys that they are given, and keep time by the server's clock alone.
var (
	//go:embed lua/line.lua
	lineLua string
	//go:embed lua/token.lua
	tokenLua string
	//go:embed lua/holders.lua
	holdersLua string
	//go:embed lua/acquire.lua
	acquireLua string
	//go:embed lua/release.lua
	releaseLua string
	//go:embed lua/quick.lua
	quickLua string
	//go:embed lua/renew.lua
	renewLua string
	//go:embed lua/extend.lua
	extendLua string
	//go:embed lua/poll.lua
	pollLua string
	//go:embed lua/confirm.lua
	confirmLua string
	//go:embed lua/lineup.lua
	lineupLua string
	//go:embed lua/inspect.lua
	inspectLua string
	//go:embed lua/revoke.lua
	revokeLua string
	//go:embed lua/keep.lua
	keepLua string
	//go:embed lua/adopt.lua
	adoptLua string
)

const (
	// Liveness is for how long a waiter stays in line without having been heard of.
	Liveness = 3 * time.Second

	// reservation is how long the first in line has to take a key that is free.
	reservation = time.Second

	// RefuseLate is for how long a request that arrives after its owner has given up is refused: longer than any
	// connection holds one back, unless the server itself is stopped.
	RefuseLate = time.Minute

	// DropTogether is how many of the dead one script drops out of a line: the server does nothing else meanwhile,
	// which is for less than a millisecond.
	DropTogether = 500

	// enterTogether is how many of the waiters that lead a line are called at a time, of those who get in together.
	enterTogether = 100

	// What a lock is set to that has several holders, or may have. No owner is called like this.
	saysShared = "locker:shared"
	saysSlots  = "locker:slots"

	// saysRevoked is before the value of a holder who was revoked.
	saysRevoked = "locker:revoked:"

	// longestValue is how much is read of what a lock is set to, which a client of another kind may have set.
	longestValue = 1024
)

// Set are the scripts of a backend: what its Config says is in their source.
type Set struct {
	Take, Give                                                                           *Script // parts of quick.lua
	Acquire, Release, Renew, Extend, Poll, Confirm, LineUp, Inspect, Revoke, Keep, Adopt *Script
}

// What a configuration says that says nothing.
const (
	DefaultChannelPrefix  = "locker:"
	DefaultTokenRetention = time.Hour
)

// Default returns those that nearly everybody has. They are made when they are wanted: it takes milliseconds, which a
// program that uses another store is not to spend at its start.
var Default = sync.OnceValue(func() *Set { return newScripts(DefaultChannelPrefix, DefaultTokenRetention) })

// For returns the scripts for a configuration.
func For(channelPrefix string, retention time.Duration) *Set {
	if channelPrefix == DefaultChannelPrefix && retention == DefaultTokenRetention {
		return Default()
	}
	return newScripts(channelPrefix, retention)
}

func newScripts(channelPrefix string, retention time.Duration) *Set {
	constants := strings.NewReplacer("$retention", Milliseconds(retention), "$liveness", Milliseconds(Liveness),
		"$reservation", Milliseconds(reservation), "$refuse", Milliseconds(RefuseLate),
		"$drop", strconv.Itoa(DropTogether), "$together", strconv.Itoa(enterTogether),
		"$shared", QuoteLua(saysShared), "$slots", QuoteLua(saysSlots),
		"$revoked", QuoteLua(saysRevoked), "$longest", strconv.Itoa(longestValue-1),
		"$channel", QuoteLua(channelPrefix))
	s := &Set{
		Acquire: newScript(acquireLua, constants), Release: newScript(releaseLua, constants),
		Renew: newScript(renewLua, constants), Extend: newScript(extendLua, constants),
		Poll: newScript(pollLua, constants), Confirm: newScript(confirmLua, constants),
		LineUp: newScript(lineupLua, constants), Inspect: newScript(inspectLua, constants),
		Revoke: newScript(revokeLua, constants), Keep: newScript(keepLua, constants),
		Adopt: newScript(adoptLua, constants),
	}
	quick := newScript(quickLua, constants)
	s.Take, s.Give = &Script{quick.Source, quick.SHA, Takes}, &Script{quick.Source, quick.SHA, Gives}
	return s
}

// QuoteLua returns a string as Lua writes it, without anything that means something to newScript.
func QuoteLua(s string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == ':', c == '_', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "\\%03d", c)
		}
	}
	b.WriteByte('\'')
	return b.String()
}

// Script is a Lua script and the name by which a server that has seen it knows it.
type Script struct {
	Source, SHA string
	Part        Part // of quick.lua
}

// Part is what a Script is of one that does several runs at once, for different locks.
type Part int

// The parts.
const (
	None  Part = iota // it is a script by itself
	Gives             // a lock back
	Takes             // a lock
)

// withFunctions fills in the functions that scripts share.
func withFunctions(lua string) string {
	return strings.NewReplacer("$line", lineLua, "$holders", holdersLua, "$token", tokenLua).Replace(lua)
}

// Changed returns the script with other text in some places.
func (s *Script) Changed(text *strings.Replacer) *Script {
	changed := newScript(s.Source, text)
	changed.Part = s.Part
	return changed
}

// newScript fills in what stands for constants, and for the functions that scripts share. It removes comments and
// indentation, which the server would have to keep.
func newScript(lua string, constants *strings.Replacer) *Script {
	lua = constants.Replace(withFunctions(lua))
	var b strings.Builder
	for line := range strings.Lines(lua) {
		line, _, _ = strings.Cut(line, "--")
		if line = strings.TrimSpace(line); line != "" {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	source := b.String()
	sum := sha1.Sum([]byte(source)) //nolint:gosec // not for security
	return &Script{Source: source, SHA: hex.EncodeToString(sum[:])}
}
