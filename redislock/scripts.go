package redislock

import (
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
)

// The scripts. Each operation is one of them, so that it is atomic and one round trip. They use no command newer than
// Redis 6.2, write only under the keys that they are given, and keep time by the server's clock alone.
var (
	//go:embed lua/line.lua
	lineLua string
	//go:embed lua/acquire.lua
	acquireLua string
	//go:embed lua/release.lua
	releaseLua string
	//go:embed lua/renew.lua
	renewLua string
	//go:embed lua/poll.lua
	pollLua string
	//go:embed lua/confirm.lua
	confirmLua string
	//go:embed lua/lineup.lua
	lineupLua string
)

// scripts are the scripts of a backend: the prefix of the channels is in their source.
type scripts struct{ acquire, release, renew, poll, confirm, lineup *script }

// defaultScripts are those for the prefix that nearly everybody has.
var defaultScripts = newScripts(defaultChannelPrefix)

func scriptsFor(channelPrefix string) *scripts {
	if channelPrefix == defaultChannelPrefix {
		return defaultScripts
	}
	return newScripts(channelPrefix)
}

func newScripts(channelPrefix string) *scripts {
	channel := quoteLua(channelPrefix)
	return &scripts{
		acquire: newScript(acquireLua, channel), release: newScript(releaseLua, channel),
		renew: newScript(renewLua, channel), poll: newScript(pollLua, channel),
		confirm: newScript(confirmLua, channel), lineup: newScript(lineupLua, channel),
	}
}

// quoteLua returns a string as Lua writes it, without anything that means something to newScript.
func quoteLua(s string) string {
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

// script is a Lua script and the name by which a server that has seen it knows it.
type script struct{ source, sha string }

// newScript fills in what stands for constants, for the prefix of the channels and for the functions of line.lua. It
// removes comments and indentation, which the server would have to keep.
func newScript(lua, channel string) *script {
	lua = strings.ReplaceAll(lua, "$line", lineLua)
	lua = strings.NewReplacer("$fence", ms(fenceTTL), "$liveness", ms(liveness), "$reservation", ms(reservation),
		"$refuse", ms(refuseLate), "$channel", channel).Replace(lua)
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
	return &script{source: source, sha: hex.EncodeToString(sum[:])}
}
