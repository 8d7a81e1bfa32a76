package pgtest

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
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
	deadline := time.Now().Add(patience)
	for {
		value, err := query(s.URL(), deadline, sql)
		switch {
		case err == nil && value == "t":
			return nil
		case err == nil && time.Now().After(deadline):
			err = fmt.Errorf("not true within %v", patience)
		}
		if err != nil {
			return fmt.Errorf("pgtest: %s: %w; the end of the server's log:\n%s", sql, err, s.LogTail())
		}
		time.Sleep(5 * time.Millisecond)
	}
}
