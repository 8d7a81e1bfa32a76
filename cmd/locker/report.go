package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lockerkit/locker"
)

// say tells people what happens, on standard error, which is also that of the command that is run: a line each, which
// begins with "locker:", or is an object of JSON with the attributes. Only what somebody has to know is said, unless
// -v wants more.
func (a *app) say(level slog.Level, message string, attrs ...slog.Attr) {
	a.logger().LogAttrs(context.Background(), level, message, attrs...)
}

func (a *app) logger() *slog.Logger {
	level := slog.LevelInfo
	switch {
	case a.verbose:
		level = slog.LevelDebug
	case a.quiet:
		level = slog.LevelError
	}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	}
	return slog.New(&plain{out: a.stderr, level: level})
}

// messages is standard error for who must not wait for it: nobody may read it, as with a terminal that Ctrl-S has
// stopped, or a pipe to a program that hangs. A command has to be ended in time all the same.
type messages struct {
	queue   chan []byte
	written chan struct{} // closed when nothing is to be written any more
}

// manyMessages is how many may wait to be written. What comes then is dropped.
const manyMessages = 1000

func newMessages(out io.Writer) *messages {
	m := &messages{queue: make(chan []byte, manyMessages), written: make(chan struct{})}
	go func() {
		defer close(m.written)
		for text := range m.queue {
			if text == nil {
				return
			}
			_, _ = out.Write(text)
		}
	}()
	return m
}

// Write never fails.
func (m *messages) Write(text []byte) (int, error) {
	select {
	case m.queue <- bytes.Clone(text):
	default:
	}
	return len(text), nil
}

// end waits until all is written, but not for long.
func (m *messages) end() {
	given := time.After(unlockWithin)
	select {
	case m.queue <- nil:
	case <-given:
		return
	}
	select {
	case <-m.written:
	case <-given:
	}
}

// failed reports why the command fails.
func (a *app) failed(err error, code int) {
	a.say(slog.LevelError, hidden(err), slog.Int("exit", code))
}

// hidden is the text of an error without the password of the store, which some client may have put there. What says so
// here need not begin with the name of the library, too.
func hidden(err error) string {
	text := strings.ReplaceAll(err.Error(), "locker: ", "")
	text = strings.ReplaceAll(text, "\n", "; ") // several errors
	if password := passwordOf(os.Getenv(storeVariable)); password != "" {
		text = strings.ReplaceAll(text, password, "xxxxx")
	}
	return text
}

// visible is a text without what a terminal takes for a command, or for a new line: anybody who may lock can write a
// name or a reason that others are shown.
func visible(text string) string {
	var all strings.Builder
	for _, r := range text {
		if strconv.IsPrint(r) {
			all.WriteRune(r)
		} else {
			all.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return all.String()
}

// reasonOf is the text of an error about a key that people know.
func reasonOf(err error) string {
	var e *locker.Error
	if errors.As(err, &e) {
		err = e.Err
	}
	return hidden(err)
}

// plain is a slog.Handler for people: the messages alone are whole sentences. Those of the library, at the level Debug,
// need their attributes.
type plain struct {
	out   io.Writer
	level slog.Level
}

func (p *plain) Enabled(_ context.Context, level slog.Level) bool { return level >= p.level }

func (p *plain) Handle(_ context.Context, r slog.Record) error {
	var line strings.Builder
	line.WriteString("locker: " + visible(r.Message))
	if r.Level < slog.LevelInfo {
		r.Attrs(func(attr slog.Attr) bool {
			line.WriteString(visible(fmt.Sprintf(" %s=%v", attr.Key, attr.Value)))
			return true
		})
	}
	_, err := fmt.Fprintln(p.out, line.String())
	return err
}

func (p *plain) WithAttrs([]slog.Attr) slog.Handler { return p }
func (p *plain) WithGroup(string) slog.Handler      { return p }

// print writes an object of JSON in a line, to standard output.
func (a *app) print(object any) error {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(object)
}

// logged is the option by which the library tells what it does, if that is wanted.
func (a *app) logged() []locker.Option {
	if !a.verbose {
		return nil
	}
	return []locker.Option{locker.Log(a.logger())}
}

// quietRedis has what go-redis logs by itself, such as each connection that fails, told only if that is wanted: what
// matters is in the errors.
type quietRedis struct{ app *app }

func (q quietRedis) Printf(_ context.Context, format string, args ...any) {
	q.app.say(slog.LevelDebug, hidden(fmt.Errorf(format, args...))) //nolint:errorlint // its own formats
}
