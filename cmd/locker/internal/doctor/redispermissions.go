package doctor

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Permissions are found out by trying: each command with arguments that make it do nothing, on a key that nobody has.
// So there is one way for all versions and users. (ACL DRYRUN came with Redis 7, and those who may only lock may not
// use it.) A server looks at the permission before it looks at what the arguments say. What it refuses is in its ACL
// LOG.

// deed is something that a user may be allowed to do.
type deed struct {
	name     string
	why      string
	commands string // separated by spaces
	further  bool   // not needed by programs that lock
}

// deeds are what docs/redis.md lists commands for.
var deeds = []deed{
	{
		name:     "permission to lock",
		why:      "Without these commands and keys, nothing can be locked.",
		commands: "eval evalsha time set get exists del pexpire " + companion,
	},
	{
		name: "permission to wait",
		why:  "Without these, nobody can wait in line, or be called when it is their turn.",
		commands: "pexpire pttl zadd zrem zcard zrange zrangebyscore zrank zscore zmscore " +
			"publish subscribe unsubscribe",
	},
	{
		name:     "permission to share",
		why:      "Without these, there are no readers (Shared) and no slots (Slots).",
		commands: "zadd zrem zcard zcount zrange zrangebyscore zscore zmscore pexpireat",
	},
	{
		name:     "permission to revoke",
		why:      "Without these, no lock can be revoked or broken.",
		commands: "eval evalsha time set get del pttl zrangebyscore zscore publish",
	},
	{
		name:     "permission to inspect",
		why:      `Without these, "locker show" and Inspect cannot tell who holds a lock.`,
		commands: "eval evalsha time get getrange pttl zcount zrange zrangebyscore zscore zmscore",
		further:  true,
	},
	{
		name:     "permission to list",
		why:      `Without it, "locker list" and List cannot find the locks.`,
		commands: "scan",
		further:  true,
	},
}

// companion is no command: SET of a key that a lock has beside it, whose name begins with a brace.
const companion = "set-companion"

// channelPrefix is what the channels begin with on which waiters are called, unless a program says otherwise.
const channelPrefix = "locker:"

// tryCommands finds out which commands are allowed.
func (s *redisServer) tryCommands(ctx context.Context) {
	key := s.options.Prefix + "locker.doctor:" + rand.Text()
	channel := channelPrefix + "locker.doctor:" + rand.Text()
	none := strings.Repeat("f", 40) // the hash of no script
	s.refusals = make(map[string]error)
	tries := map[string][]any{
		"eval":          {"return 0", 1, key},
		"evalsha":       {none, 1, key}, // NOSCRIPT
		"time":          {},
		"set":           {key, "", "px", "x"}, // x is no number, here and below
		"get":           {key},
		"exists":        {key},
		"del":           {key},
		"pexpire":       {key, "x"},
		"pexpireat":     {key, "x"},
		"pttl":          {key},
		"zadd":          {key, "x", "m"},
		"zrem":          {key, "m"},
		"zcard":         {key},
		"zcount":        {key, 0, 0},
		"zrange":        {key, 0, 0},
		"zrangebyscore": {key, 0, 0},
		"zrank":         {key, "m"},
		"zscore":        {key, "m"},
		"zmscore":       {key, "m"},
		"publish":       {channel, ""},
		"getrange":      {key, 0, 0},
		"scan":          {0, "match", key, "count", 1},
	}
	pipeline := s.Pipeline()
	asked := make(map[string]*redis.Cmd)
	for name, args := range tries {
		asked[name] = pipeline.Do(ctx, append([]any{name}, args...)...)
	}
	asked[companion] = pipeline.Do(ctx, "set", "{"+key+"}:locker:fence:", "", "px", "x")
	_, _ = pipeline.Exec(ctx) // each has an error of its own
	for name, cmd := range asked {
		s.refusals[name] = refusalIn(cmd.Err())
	}
	s.refusals["subscribe"], s.refusals["unsubscribe"] = s.trySubscribe(ctx, channel)
}

// trySubscribe subscribes to a channel, and undoes it.
func (s *redisServer) trySubscribe(ctx context.Context, channel string) (subscribe, unsubscribe error) {
	pubsub := s.Subscribe(ctx, channel)
	defer finish(ctx, pubsub.Close)
	if _, err := pubsub.Receive(ctx); err != nil {
		return err, nil
	}
	if err := pubsub.Unsubscribe(ctx, channel); err != nil {
		return nil, err
	}
	_, err := pubsub.Receive(ctx)
	return nil, err
}

// refusalIn returns an error unless the server has said something else than that the command is not allowed.
func refusalIn(err error) error {
	said := reply(err)
	if err == nil || said != "" && !isRefusal(said) {
		return nil
	}
	return err
}

func isRefusal(said string) bool {
	return strings.HasPrefix(said, "NOPERM") || strings.Contains(said, "unknown command")
}

// permissionChecks are those that make sense there.
func permissionChecks(t topology) (checks []check[*redisServer]) {
	for _, d := range deeds {
		if t == independent && d.name != "permission to lock" && d.name != "permission to wait" {
			continue // a Redlock cannot do these
		}
		checks = append(checks, check[*redisServer]{d.name, d.why, func(_ context.Context, s *redisServer) finding {
			return s.may(d)
		}})
	}
	return checks
}

// may tells whether a user may do something.
func (s *redisServer) may(d deed) finding {
	var missing, rules, disabled []string
	commands := strings.Fields(d.commands)
	for _, name := range commands {
		err := s.refusals[name]
		said := reply(err)
		switch {
		case err == nil:
			continue
		case said == "":
			return unknown("%s: %v", shown(name), err)
		case strings.Contains(said, "unknown command"):
			disabled = append(disabled, shown(name))
			continue
		}
		missing = append(missing, shown(name))
		for _, rule := range s.rulesFor(name, said) {
			if !slices.Contains(rules, rule) {
				rules = append(rules, rule)
			}
		}
	}
	switch {
	case len(disabled) > 0:
		return fail("the server does not know %s", strings.Join(disabled, ", ")).
			remedy("Use a server on which these commands are neither renamed nor disabled.")
	case len(missing) == 0:
		return ok("%s", plural(len(commands), "command"))
	}
	f := fail("not allowed: %s", strings.Join(missing, ", "))
	if d.further {
		f = warn("not allowed: %s", strings.Join(missing, ", "))
	}
	return f.remedy("ACL SETUSER %s %s", s.user(), strings.Join(rules, " "))
}

// shown is a command as people write it.
func shown(name string) string {
	if name == companion {
		return "SET of companion keys"
	}
	return strings.ToUpper(name)
}

func (s *redisServer) user() string {
	if name := s.Options().Username; name != "" {
		return name
	}
	return "default"
}

// rulesFor returns what to grant for a command that was refused.
func (s *redisServer) rulesFor(name, said string) []string {
	switch {
	case strings.Contains(said, "channel"):
		return []string{"&" + channelPrefix + "*"}
	case !strings.Contains(said, "command"):
		return []string{fmt.Sprintf("~%s*", s.options.Prefix), fmt.Sprintf("~{%s*", s.options.Prefix)}
	case name == companion:
		return []string{"+set"}
	}
	return []string{"+" + name}
}
