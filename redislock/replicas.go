package redislock

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// ask makes one request to acquire n.
func (b *backend) ask(ctx context.Context, n names, words []string) (any, error) {
	if b.replicas == 0 {
		return b.client.run(ctx, b.scripts.acquire, 5, words)
	}
	reply, confirmed, err := b.client.runReplicated(ctx, b.scripts.acquire, 5, words, b.replicas, b.within)
	if _, granted := reply.(string); err != nil || !granted || confirmed >= int64(b.replicas) {
		return reply, err
	}
	return nil, &shortfall{
		confirmed: confirmed, wanted: b.replicas, within: b.within,
		givenBack: b.free(ctx, n) == nil, // else package locker does it, as after every error of unknown outcome
	}
}

func isShortfall(err error) bool {
	var short *shortfall
	return errors.As(err, &short)
}

// shortfall is the error of a lock that too few replicas have confirmed.
type shortfall struct {
	confirmed int64
	wanted    int
	within    time.Duration
	givenBack bool
}

func (e *shortfall) Error() string {
	return fmt.Sprintf("%v: %d of %d within %v", ErrReplicas, e.confirmed, e.wanted, e.within)
}

func (e *shortfall) Unwrap() error { return ErrReplicas }

// unconfirmed is the error of a WAIT that failed, after the lock was granted.
type unconfirmed struct{ err error }

func (e *unconfirmed) Error() string { return fmt.Sprintf("waiting for replicas: %v", e.err) }
func (e *unconfirmed) Unwrap() error { return e.err }

// runReplicated is run; if the script grants a lock, it then waits until so many replicas have received it, and returns how
// many did. Both go out on one connection, as WAIT is about what was written on its own.
func (c *client) runReplicated(ctx context.Context, s *script, keys int, words []string, replicas int, within time.Duration) (any, int64, error) {
	ctx, cancel := timed(ctx)
	defer cancel()
	if c.nodes != nil {
		return c.nodes.runReplicated(ctx, s, keys, words, replicas, within)
	}
	type outcome struct {
		reply     any
		confirmed int64
		err       error
	}
	done := make(chan outcome, 1)
	go func() { // a connection of its own is waited for without regard to ctx
		var o outcome
		o.reply, o.confirmed, o.err = onOneConn(ctx, c.UniversalClient.(*redis.Client), s, keys, words, replicas, within)
		done <- o
	}()
	select {
	case o := <-done:
		return o.reply, o.confirmed, o.err
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
}

func onOneConn(ctx context.Context, rdb *redis.Client, s *script, keys int, words []string, replicas int, within time.Duration) (any, int64, error) {
	conn := rdb.Conn()
	defer func() { _ = conn.Close() }()
	cmd := command(ctx, s, keys, words)
	err := conn.Process(ctx, cmd)
	if isNoScript(err) {
		cmd = source(ctx, s, cmd)
		err = conn.Process(ctx, cmd)
	}
	if err != nil {
		return nil, 0, err
	}
	if _, granted := cmd.Val().(string); !granted {
		return cmd.Val(), 0, nil
	}
	confirmed, err := conn.Wait(ctx, replicas, within).Result()
	if err != nil {
		return nil, 0, &unconfirmed{err}
	}
	return cmd.Val(), confirmed, nil
}

// runReplicated is client.runReplicated. It does not follow redirections, as those lead to a connection that is not
// known: it tries again until the map of the slots is right.
func (c *cluster) runReplicated(ctx context.Context, s *script, keys int, words []string, replicas int, within time.Duration) (any, int64, error) {
	for pause := unsettledPause; ; pause = min(2*pause, longestUnsettledPause) {
		node, err := c.node(ctx, words[0])
		if err != nil {
			return nil, 0, err
		}
		reply, confirmed, err := node.runReplicated(ctx, s, keys, words, replicas, within)
		switch {
		case err == nil:
			return reply, confirmed, nil
		case !isReply(err):
			return nil, 0, c.failed(ctx, node, err)
		case !isUnsettled(err):
			return nil, 0, err
		}
		c.cc.ReloadState(ctx)
		if !wait(ctx, pause) {
			return nil, 0, err
		}
	}
}
