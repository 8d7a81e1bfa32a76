// Command queue processes the jobs of a list in Redis, one after the other, in one worker of as many as are started:
//
//	go run ./examples/queue                     # in several terminals
//	redis-cli LPUSH {orders} first second third
//
// docs/queue.md explains it. The example in examples/workers shows more: what happens on other stores, and a grace for
// the job in hand.
package main

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker"
	"github.com/lockerkit/locker/redislock"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cmp.Or(os.Getenv("REDIS_ADDR"), "localhost:6379"), "{orders}", do); err != nil {
		slog.Error("queue", "error", err)
		os.Exit(1)
	}
}

// do does one job. ctx ends when this process is told to stop, and when the lock is lost: return then, and another
// worker will do the job.
func do(ctx context.Context, job string) (result string, err error) {
	select {
	case <-time.After(time.Second): // your work goes here
		return "did " + job, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// run works until ctx ends: whenever no other worker leads, this one does.
func run(ctx context.Context, addr, name string, do func(context.Context, string) (string, error)) error {
	rdb := redis.NewClient(&redis.Options{Addr: addr})
	defer rdb.Close()
	l := redislock.New(rdb, locker.Log(slog.Default()))
	defer l.Close()
	if err := l.Ping(ctx); err != nil { // else a wrong address would be ridden out for ever
		return err
	}

	err := locker.Lead(ctx, l, name, func(ctx context.Context, lease *locker.Lease) error {
		q := &queue{rdb: rdb, name: name, token: lease.Token()}
		slog.Info("leading", "queue", name, "token", q.token)
		return q.process(ctx, do)
	})
	if ctx.Err() != nil && !errors.Is(err, locker.ErrUnavailable) {
		return nil // told to stop; the lock is free
	}
	return err
}

// queue is a list of jobs in Redis, for one leader. It keeps the greatest token that it has seen, and refuses all calls
// with a smaller one: those come from a leader who does not know yet that there is another.
type queue struct {
	rdb   *redis.Client
	name  string
	token uint64
}

var (
	//go:embed next.lua
	nextSource string
	//go:embed finish.lua
	finishSource string

	next   = redis.NewScript(nextSource)
	finish = redis.NewScript(finishSource)

	errDeposed = errors.New("another worker leads")
)

// process does one job after the other until ctx ends.
func (q *queue) process(ctx context.Context, do func(context.Context, string) (string, error)) error {
	for ctx.Err() == nil {
		job, err := q.call(ctx, next)
		switch {
		case errors.Is(err, redis.Nil):
			select { // there is no job
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return ofLoss(ctx, err)
		}
		result, err := do(ctx, job)
		if err == nil {
			_, err = q.call(ctx, finish, job, result)
		}
		if err != nil {
			return ofLoss(ctx, fmt.Errorf("job %q: %w", job, err))
		}
		slog.Info("done", "job", job, "token", q.token)
	}
	return nil
}

// ofLoss returns nil if ctx has ended or another worker leads: Lead then does what is right.
func ofLoss(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, errDeposed) {
		slog.Info("stepping down", "reason", err)
		return nil
	}
	return err
}

// call runs a script with the token.
func (q *queue) call(ctx context.Context, s *redis.Script, args ...any) (string, error) {
	keys := []string{q.name, q.name + ":fence", q.name + ":results"}
	reply, err := s.Run(ctx, q.rdb, keys, append([]any{q.token}, args...)...).Text()
	if err != nil && redis.HasErrorPrefix(err, "DEPOSED") {
		return "", errDeposed
	}
	return reply, err
}
