package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lockerkit/locker/redislock/internal/conn"
)

// keepListening listens for calls, until ctx ends.
func (l *Line) keepListening(ctx context.Context) {
	var before time.Time // when the attempt before this one was made
	for failures := 1; ctx.Err() == nil; failures++ {
		begun := time.Now()
		subscribed, err := l.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if subscribed && time.Since(begun) > PollEvery { // else it is one that is cut off again and again
			failures = 1
		}
		err = fmt.Errorf("cannot subscribe to a channel %s*: %w", l.prefix, l.client.Explain(err))
		longest := 2 * time.Second
		switch {
		case errors.Is(err, conn.ErrPermission):
			// Waiting would work without, slowly; but this is ours to mend, and nobody would.
			l.failAll(err)
		case failures > 1 && l.answeredSince(before, err):
			longest = longestDeaf
		}
		l.client.Reload()
		conn.Sleep(ctx, backOff(failures, longest))
		before = begun
	}
}

// answeredSince reports whether the server answers what is asked, as it did after the given time. Then nobody is called
// because of err, and that is told to everybody who waits: a proxy, perhaps, that knows no subscriptions.
func (l *Line) answeredSince(since time.Time, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.answered.After(since) {
		return false
	}
	l.uncalled = fmt.Errorf("waiting: nobody is called, so that waiters ask instead: %w", err)
	return true
}

// listen subscribes to the channel of this process, and that of locks that are taken away, and passes on what it hears,
// until that fails. It reports whether it had
// succeeded. A connection that is silent is pinged, so that one which is dead without knowing it does not stay.
func (l *Line) listen(ctx context.Context) (subscribed bool, err error) {
	sub := l.client.Subscribe(ctx, l.prefix+l.Process, l.prefix+revokedChannel)
	closeSub := func() { _ = sub.Close() }
	defer closeSub()
	defer context.AfterFunc(ctx, closeSub)() // Receive does not heed ctx
	pinged, failed := false, false
	for {
		message, err := sub.ReceiveTimeout(ctx, pingEvery)
		var netErr net.Error
		switch {
		case err == nil:
			pinged, failed, subscribed = false, false, true
			l.heard(message)
		case !pinged && errors.As(err, &netErr) && netErr.Timeout():
			pinged = true
			_ = sub.Ping(ctx)
		case !pinged && !failed && !conn.IsReply(err):
			failed = true // go-redis has replaced the connection, and will say so with a *redis.Subscription
		default:
			return subscribed, err
		}
	}
}

// MayListen returns an error if waiters could not be called.
func (b *Server) MayListen(ctx context.Context) error { return b.Line.mayListen(ctx) }

// mayListen subscribes to the channel for a moment, and returns why that is not possible, if so.
func (l *Line) mayListen(ctx context.Context) error {
	sub := l.client.Subscribe(ctx, l.prefix+l.Process)
	closeSub := func() { _ = sub.Close() }
	defer closeSub()
	defer context.AfterFunc(ctx, closeSub)()
	var err error
	for range conn.Attempts { // go-redis replaces a connection that has failed, and says so once
		if _, err = sub.ReceiveTimeout(ctx, conn.MaxTimeout); err == nil || conn.IsReply(err) || ctx.Err() != nil {
			break
		}
	}
	err, _ = l.client.MeaningOf(err)
	return err
}

// heard passes on what came by the subscription.
func (l *Line) heard(message any) {
	switch message := message.(type) {
	case *redis.Subscription:
		l.askNow() // what was said before was not heard
	case *redis.Message:
		if message.Channel == l.prefix+revokedChannel {
			l.leases.heard(message.Payload)
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		for owner := range strings.SplitSeq(message.Payload, " ") {
			if w := l.waiters[owner]; w != nil {
				w.Call()
			}
		}
	}
}

func (l *Line) failAll(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.keys {
		for w := range k.waiters {
			w.Fail(err)
		}
	}
}

// askNow makes poll ask about every key at once: from now on, waiters are called.
func (l *Line) askNow() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.subscribed++
	l.uncalled = nil
	l.urgent = slices.Clone(l.due) // those that are being asked about are asked about again when the answer comes
	l.hurry()
}
