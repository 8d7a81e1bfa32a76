package main

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// redisQueue is a Queue in Redis: one hash, which only scripts change, and which is in one place on a cluster. Its
// fields are
//
//	token, leader   of the greatest token seen
//	seen            when that leader was last heard of, in microseconds by the clock of the server
//	left            set if it left
//	done            the number of the last job done
//	1, 2, 3 ...     token and name of who did the job, for the last thousand jobs
//
// It never expires, or a leader who was deposed could get in after all: delete it to begin again with job 1. What a
// replica that takes over had not received yet is forgotten: a queue that must not forget belongs on a store that
// replicates synchronously.
type redisQueue struct {
	rdb redis.Scripter
	key string
}

var _ Queue = (*redisQueue)(nil)

// queuePrefix is the beginning of the keys of queues. It keeps them apart from the locks, which begin with "locker:".
const queuePrefix = "workers:"

func newRedisQueue(rdb redis.Scripter, name string) *redisQueue {
	return &redisQueue{rdb: rdb, key: queuePrefix + name}
}

//go:embed queue.lua
var fenceSource string

// The scripts, each behind the fence. They return a list of strings, the first of which is "ok" or what is wrong.
var (
	claimScript = redis.NewScript(fenceSource + `
		return {'ok', before.leader, before.left, before.ago}`)

	nextScript = redis.NewScript(fenceSource + `
		return {'ok', string.format('%.0f', done + 1)}`)

	submitScript = redis.NewScript(fenceSource + `
		local job = tonumber(ARGV[3])
		if job == done + 1 then
			redis.call('HSET', queue, 'done', ARGV[3], ARGV[3], token .. ' ' .. leader)
			redis.call('HDEL', queue, string.format('%.0f', job - 1000))
			return {'ok'}
		end
		local by = redis.call('HGET', queue, ARGV[3])
		if job == done and by == token .. ' ' .. leader then
			return {'ok'} -- again: the answer got lost
		end
		return {'order', string.format('%.0f', done + 1)}`)

	leaveScript = redis.NewScript(fenceSource + `
		redis.call('HSET', queue, 'left', '1')
		return {'ok'}`)
)

// ask runs a script, and returns what it answered behind the "ok".
func (q *redisQueue) ask(ctx context.Context, s *redis.Script, l Leader, args ...any) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerWithin, errNoAnswer)
	defer cancel()
	args = append([]any{l.Token, l.Name}, args...)
	answer, err := s.Run(ctx, q.rdb, []string{q.key}, args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("redis: queue %q: %w", q.key, sayNoAnswer(ctx, err))
	}
	switch {
	case len(answer) == 3 && answer[0] == "deposed":
		token, _ := strconv.ParseUint(answer[1], 10, 64)
		return nil, deposed(Leader{Token: token, Name: answer[2]})
	case len(answer) == 2 && answer[0] == "order":
		next, _ := strconv.ParseInt(answer[1], 10, 64)
		return nil, outOfOrder(next)
	}
	return answer[1:], nil
}

func (q *redisQueue) Claim(ctx context.Context, l Leader) (Handover, error) {
	answer, err := q.ask(ctx, claimScript, l)
	if err != nil {
		return Handover{}, err
	}
	ago, err := strconv.ParseInt(answer[2], 10, 64)
	return Handover{From: answer[0], Left: answer[1] != "", Ago: time.Duration(ago) * time.Microsecond}, err
}

func (q *redisQueue) Next(ctx context.Context, l Leader) (int64, error) {
	answer, err := q.ask(ctx, nextScript, l)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(answer[0], 10, 64)
}

func (q *redisQueue) Submit(ctx context.Context, l Leader, job int64) error {
	_, err := q.ask(ctx, submitScript, l, job)
	return err
}

func (q *redisQueue) Leave(ctx context.Context, l Leader) error {
	_, err := q.ask(ctx, leaveScript, l)
	return err
}
