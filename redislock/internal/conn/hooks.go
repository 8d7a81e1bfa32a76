package conn

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"
)

// passOn is a hook that changes nothing, for others to begin with.
type passOn struct{}

// DialHook implements redis.Hook.
func (passOn) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (passOn) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook implements redis.Hook.
func (passOn) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// connectHook has go-redis return what a server says that hangs up on a new connection. Otherwise it takes that for the
// answer of a server which does not know HELLO, goes on, and returns that the connection is broken.
type connectHook struct{ passOn }

// ProcessHook implements redis.Hook.
func (connectHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil || cmd.Name() != "hello" || !IsReply(err) {
			return err
		}
		for _, text := range []string{tooManyClients, protectedMode} {
			if strings.Contains(err.Error(), text) {
				return hungUp(err.Error())
			}
		}
		return err
	}
}

// What servers say before they hang up.
const (
	tooManyClients = "max number of clients"     // ERR
	protectedMode  = "protected mode is enabled" // DENIED
)

// hungUp is what a server has said to a connection before it hung up. It is no redis.Error: after one of those,
// go-redis goes on with the connection.
type hungUp string

func (e hungUp) Error() string { return string(e) }

// hooksOf has the hooks of a client see the commands of its clone: clones of go-redis 9.23 have none. They are those
// that the client has when the clone gets this one. Connections are made by the client itself.
type hooksOf struct {
	passOn
	plain *redis.Client
}

// ProcessHook implements redis.Hook.
func (h hooksOf) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return h.around(instead{process: next}).Process
}

// ProcessPipelineHook implements redis.Hook.
func (h hooksOf) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	hooks := h.around(instead{pipeline: next})
	return func(ctx context.Context, cmds []redis.Cmder) error {
		_, err := hooks.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, cmd := range cmds {
				_ = p.Process(ctx, cmd) // only queues it
			}
			return nil
		})
		return err
	}
}

// around returns the hooks of the client around f. It is a *redis.Conn, which takes a connection when it has something
// to send. That does not come to pass, as f does it instead.
func (h hooksOf) around(f instead) *redis.Conn {
	hooks := h.plain.Conn()
	hooks.AddHook(f)
	return hooks
}

// instead is the innermost hook: it has the clone do what the client would.
type instead struct {
	passOn
	process  redis.ProcessHook
	pipeline redis.ProcessPipelineHook
}

// ProcessHook implements redis.Hook.
func (i instead) ProcessHook(redis.ProcessHook) redis.ProcessHook { return i.process }

// ProcessPipelineHook implements redis.Hook.
func (i instead) ProcessPipelineHook(redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return i.pipeline
}
