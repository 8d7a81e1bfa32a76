package redislock

import (
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	_ "embed"
	"encoding/hex"
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

	acquireScript = newScript(acquireLua)
	releaseScript = newScript(releaseLua)
	renewScript   = newScript(renewLua)
	pollScript    = newScript(pollLua)
	confirmScript = newScript(confirmLua)
	lineupScript  = newScript(lineupLua)
)

// script is a Lua script and the name by which a server that has seen it knows it.
type script struct{ source, sha string }

// newScript fills in what stands for constants and for the functions of line.lua, and removes comments and indentation,
// which the server would have to keep.
func newScript(lua string) *script {
	lua = strings.ReplaceAll(lua, "$line", lineLua)
	lua = strings.NewReplacer("$fence", ms(fenceTTL), "$liveness", ms(liveness), "$reservation", ms(reservation), "$refuse", ms(refuseLate)).Replace(lua)
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
