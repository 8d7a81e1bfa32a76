package main

import (
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/pgtest"
	"github.com/lockerkit/locker/internal/redistest"
)

// sharedServers are the servers that tests share, and where they are, as environment variables.
type sharedServers struct {
	mu      sync.Mutex
	servers []io.Closer
	env     []string
}

// start starts the servers. Those that have started are to be closed even after an error.
func (s *sharedServers) start() error {
	starts := []func() (server io.Closer, variable, address string, err error){
		func() (io.Closer, string, string, error) {
			server, err := redistest.Start(redistest.Options{})
			if err != nil {
				return nil, "", "", err
			}
			return server, redistest.EnvAddress, server.Addr(), nil
		},
		func() (io.Closer, string, string, error) {
			group, err := redistest.StartSentinels(redistest.SentinelOptions{})
			if err != nil {
				return nil, "", "", err
			}
			return group, "LOCKER_TEST_SENTINEL", group.URL(), nil
		},
		func() (io.Closer, string, string, error) {
			server, err := pgtest.Start(pgtest.Options{})
			if err != nil {
				return nil, "", "", err
			}
			return server, pgtest.EnvURL, server.URL(), nil
		},
		func() (io.Closer, string, string, error) {
			cluster, err := etcdtest.Start(etcdtest.Options{Members: 3})
			if err != nil {
				return nil, "", "", err
			}
			return cluster, etcdtest.EnvAddress, cluster.Member(0).URL(), nil
		},
	}
	errs := make([]error, len(starts))
	var wg sync.WaitGroup
	for i, start := range starts {
		wg.Go(func() {
			server, variable, address, err := start()
			if err != nil {
				errs[i] = err
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.servers = append(s.servers, server)
			s.env = append(s.env, variable+"="+address)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// String says where the servers are.
func (s *sharedServers) String() string { return strings.Join(s.env, "\n") }

// close closes the servers.
func (s *sharedServers) close() error {
	var errs []error
	for _, server := range s.servers {
		errs = append(errs, server.Close())
	}
	return errors.Join(errs...)
}
