package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lockerkit/locker"
)

func (a *app) watchCommand() *cobra.Command {
	var interval time.Duration
	c := &cobra.Command{
		Use:   "watch [OPTIONS] KEY [KEY...]",
		Short: "Watch who holds locks, as a picture or a line per change",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, keys []string) error {
			if interval <= 0 {
				return usage("-interval %v: must be positive", interval)
			}
			return a.asking(func(ctx context.Context, c *locker.Client) error {
				return a.watch(ctx, c, keys, interval)
			})
		},
	}
	c.Flags().DurationVar(&interval, "interval", time.Second, "look each `TIME`")
	return c
}

// watch looks at locks until ctx ends. A store that does not answer meanwhile is told of, and asked again.
func (a *app) watch(ctx context.Context, c *locker.Client, keys []string, interval time.Duration) error {
	out, isFile := a.stdout.(*os.File)
	redraw := isFile && !a.json && term.IsTerminal(int(out.Fd()))
	last := make(map[string]string)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for answered := false; ; {
		var picture strings.Builder
		for _, key := range keys {
			info, err := c.Inspect(ctx, key)
			switch {
			case ctx.Err() != nil: // also if there was an answer
				return context.Cause(ctx)
			case err != nil && !answered:
				return err
			case err != nil:
				fmt.Fprintf(&picture, "%s: %s\n", visible(key), visible(hidden(err)))
			default:
				answered = true
				picture.WriteString(describe(info))
			}
			if redraw {
				continue
			}
			if err := a.changed(last, key, info, err); err != nil {
				return err
			}
		}
		if redraw {
			const home, toEnd = "\x1b[H\x1b[2J", "\x1b[J"
			now := time.Now().Format(time.DateTime)
			if _, err := fmt.Fprintf(out, "%s%s\n\n%s%s", home, now, picture.String(), toEnd); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// change is one of a lock, in JSON.
type change struct {
	Time  string      `json:"time"`
	Lock  *lockObject `json:"lock,omitempty"`
	Error string      `json:"error,omitempty"`
}

// changed prints a line if a lock is not as it was, the time that is left aside.
func (a *app) changed(last map[string]string, key string, info locker.LockInfo, failure error) error {
	var texts []string
	for _, h := range info.Holders {
		h.Left = 0
		texts = append(texts, fmt.Sprint(h))
	}
	state := strings.Join(texts, "\n") + fmt.Sprint(info.Waiting, failure)
	if before, known := last[key]; known && before == state {
		return nil
	}
	last[key] = state
	now := time.Now()
	if a.json {
		c := change{Time: moment(now)}
		if failure != nil {
			c.Error = hidden(failure)
		} else {
			o := objectOf(info)
			c.Lock = &o
		}
		return a.print(c)
	}
	line := "free"
	switch {
	case failure != nil:
		line = hidden(failure)
	case len(info.Holders) > 0:
		line = "held by " + holders(info)
	}
	line = fmt.Sprintf("%s %s: %s\n", now.Format(time.DateTime), visible(key), visible(line))
	_, err := io.WriteString(a.stdout, line)
	return err
}
