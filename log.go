package locker

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
)

// logTo returns the Observer of the option Log. Its messages and attributes are for people; those who want to count
// have the Observer itself.
func logTo(logger *slog.Logger) *Observer {
	background := context.Background()
	var unlockFails atomic.Bool // the last Unlock could not reach the store
	return &Observer{
		LockDone: func(ctx context.Context, i LockDoneInfo) {
			attrs := lockAttrs(i.Key, i.Store, slog.Duration("waited", i.Waited))
			if i.Queued || i.Behind != "" {
				attrs = append(attrs, slog.String("behind", i.Behind))
			}
			if i.Err != nil {
				logger.LogAttrs(ctx, slog.LevelDebug, i.Op+" failed", append(attrs, errAttr(i.Err))...)
				return
			}
			logger.LogAttrs(ctx, slog.LevelDebug, "locked", append(attrs, slog.Uint64("token", i.Token))...)
		},
		LeaseDone: func(i LeaseDoneInfo) {
			attrs := lockAttrs(i.Key, i.Store, slog.Uint64("token", i.Token), slog.Duration("held", i.Held))
			switch {
			case errors.Is(i.Err, ErrLost):
				logger.LogAttrs(background, slog.LevelError, "lease lost", append(attrs, errAttr(i.Err))...)
			case i.Err != nil:
				level := slog.LevelWarn
				if unlockFails.Swap(true) {
					level = slog.LevelDebug
				}
				logger.LogAttrs(background, level, "unlock failed; the key is free after its TTL", append(attrs, errAttr(i.Err))...)
			default:
				unlockFails.Store(false)
				logger.LogAttrs(background, slog.LevelDebug, "unlocked", attrs...)
			}
		},
		Renewed: func(i RenewedInfo) {
			attrs := lockAttrs(i.Key, i.Store, slog.Uint64("token", i.Token), slog.Duration("slack", i.Slack))
			if i.Err == nil {
				logger.LogAttrs(background, slog.LevelDebug, "renewed", attrs...)
				return
			}
			logger.LogAttrs(background, firstOfStreak(i.Failures), "renewal failed", append(attrs, errAttr(i.Err))...)
		},
		Retry: func(i RetryInfo) {
			attrs := lockAttrs(i.Key, i.Store, slog.Int("attempt", i.Attempt), slog.Duration("pause", i.Pause), errAttr(i.Err))
			logger.LogAttrs(background, firstOfStreak(i.Attempt), i.Op+" rides out a failure", attrs...)
		},
		Revoked: func(i RevokedInfo) {
			attrs := lockAttrs(i.Key, i.Store, slog.String("by", i.By), slog.String("reason", i.Reason))
			switch {
			case i.Err != nil:
				logger.LogAttrs(background, slog.LevelWarn, i.Op+" failed", append(attrs, errAttr(i.Err))...)
			case i.Broken:
				logger.LogAttrs(background, slog.LevelWarn, "lock broken", attrs...)
			default:
				logger.LogAttrs(background, slog.LevelWarn, "lock revoked", attrs...)
			}
		},
	}
}

// firstOfStreak is the level of a failure that is the nth in a row.
func firstOfStreak(n int) slog.Level {
	if n > 1 {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func lockAttrs(key, store string, more ...slog.Attr) []slog.Attr {
	return append([]slog.Attr{slog.String("key", key), slog.String("store", store)}, more...)
}

// errAttr is the attribute of an error: as text, since that of an *Error repeats the key.
func errAttr(err error) slog.Attr {
	var e *Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return slog.String("error", err.Error())
}
