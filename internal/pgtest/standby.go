package pgtest

import (
	"errors"
	"fmt"
	"maps"
	"testing"

	"github.com/lockerkit/locker/internal/testserver"
)

// Standby starts a hot standby: a server with a copy of the data, which
// receives and repeats all changes, and answers queries that only read. It
// has the settings of its primary, but for those in opts, and is closed when
// the test is over.
//
// A commit at the primary does not wait for it; see SetSynchronous. To have a
// standby as the new primary, end the old one, and Promote it.
func (s *Server) Standby(tb testing.TB, opts Options) *Server {
	tb.Helper()
	standby := testserver.New(tb, product, func() (*Server, error) { return s.standby(opts) })
	if err := s.await(s.isFollowed(standby, "state = 'streaming'")); err != nil {
		tb.Fatal(err)
	}
	return standby
}

func (s *Server) standby(opts Options) (*Server, error) {
	settings := maps.Clone(s.settings)
	if settings == nil {
		settings = make(map[string]string)
	}
	maps.Copy(settings, opts.Settings)
	var name string
	standby, err := start(s.in, settings, func(port int, dir string) error {
		name = fmt.Sprintf("standby_%d", port) // no two have the same
		return s.in.command(dir, "pg_basebackup",
			"-d", s.URL()+"&application_name="+name, "--no-password",
			"-D", dataDir(dir), "--no-sync", "--checkpoint=fast",
			"--write-recovery-conf", // what makes it a standby, with the connection as above
		).Run(patience)
	})
	if err != nil {
		return nil, err
	}
	standby.primary, standby.name = s, name
	return standby, nil
}

// isFollowed is a query whether the standby is connected, with a condition.
func (s *Server) isFollowed(standby *Server, condition string) string {
	return fmt.Sprintf("SELECT count(*) > 0 FROM pg_stat_replication WHERE application_name = '%s' AND %s",
		standby.name, condition)
}

// SetSynchronous has all commits at the server wait until the standby has
// them, too, and until it is there if it is not. Queries at the standby may
// not see them at once, unless they were made with synchronous_commit =
// remote_apply. With nil, commits wait for nobody again.
func (s *Server) SetSynchronous(standby *Server) error {
	name := ""
	if standby != nil {
		if standby.primary != s {
			return errors.New("pgtest: not a standby of this server")
		}
		name = standby.name
	}
	if err := s.run(
		"ALTER SYSTEM SET synchronous_standby_names = '"+name+"'",
		"SELECT pg_reload_conf()",
	); err != nil {
		return err
	}
	// New connections know it when the server has told all of its processes.
	if err := s.await("SELECT current_setting('synchronous_standby_names') = '" + name + "'"); err != nil {
		return err
	}
	// But commits obey the one that does checkpoints, which looks for news
	// only before one: the second has certainly seen it.
	if err := s.run("CHECKPOINT", "CHECKPOINT"); err != nil || standby == nil {
		return err
	}
	return s.await(s.isFollowed(standby, "sync_state = 'sync'"))
}

// CatchUp waits until the standby has repeated all that was written at its
// primary before the call, so that queries see it.
func (s *Server) CatchUp() error {
	if s.primary == nil {
		return errNoStandby
	}
	position, err := s.primary.query("SELECT pg_current_wal_flush_lsn()")
	if err != nil {
		return err
	}
	return s.await("SELECT pg_last_wal_replay_lsn() >= '" + position + "'")
}

// Promote makes the standby a server of its own, which also writes. It does
// not end the primary, which goes on with data of its own.
func (s *Server) Promote() error {
	if s.primary == nil {
		return errNoStandby
	}
	done, err := s.query(fmt.Sprintf("SELECT pg_promote(true, %d)", int(patience.Seconds())))
	if err == nil && done != "t" {
		err = fmt.Errorf("pgtest: not promoted within %v; the end of the server's log:\n%s", patience, s.LogTail())
	}
	return err
}

// errNoStandby is the error where only a standby will do.
var errNoStandby = errors.New("pgtest: the server is not a standby")
