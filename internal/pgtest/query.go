package pgtest

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lockerkit/locker/internal/testserver"
)

// query runs a statement on a new connection, and returns the first value of
// its result as text, or "".
func query(url string, deadline time.Time, sql string) (value string, err error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	conn, err := pgconn.Connect(ctx, url)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err == nil && len(results) > 0 && len(results[0].Rows) > 0 {
		value = string(results[0].Rows[0][0])
	}
	return value, err
}

// query runs a statement at the server, likewise.
func (s *Server) query(sql string) (value string, err error) {
	value, err = query(s.URL(), time.Now().Add(patience), sql)
	if err != nil {
		err = fmt.Errorf("pgtest: %s: %w", sql, err)
	}
	return value, err
}

// run runs statements at the server, each on its own, as some of them must be.
func (s *Server) run(statements ...string) error {
	for _, sql := range statements {
		if _, err := s.query(sql); err != nil {
			return err
		}
	}
	return nil
}

// await runs a query again and again until its result is true. Postgres does
// not tell when these things happen.
func (s *Server) await(sql string) error {
	err := testserver.Poll(context.Background(), patience, func(ctx context.Context) error {
		deadline, _ := ctx.Deadline()
		value, err := query(s.URL(), deadline, sql)
		if err == nil && value != "t" {
			err = fmt.Errorf("it is %q", value)
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("pgtest: %s: %w; the end of the server's log:\n%s", sql, err, s.LogTail())
	}
	return err
}
