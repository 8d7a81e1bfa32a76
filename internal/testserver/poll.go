package testserver

import (
	"context"
	"fmt"
	"time"
)

// Poll tries something until it works, for what has no event to wait for. The error is that of the last try, which
// has come after ctx ended or patience was over.
func Poll(ctx context.Context, patience time.Duration, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", patience, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
