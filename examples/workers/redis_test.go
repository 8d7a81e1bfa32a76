//go:build unix

package main

import (
	"crypto/rand"
	"syscall"
	"testing"

	"github.com/lockerkit/locker/internal/redistest"
	"github.com/lockerkit/locker/redislock"
)

// A fleet works on a Redis Cluster, with Sentinel and on several servers as it does on one, and goes on when one of
// them dies.
func TestRedisDeployments(t *testing.T) {
	t.Parallel()
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		c := redistest.NewCluster(t, redistest.ClusterOptions{})
		testDeployment(t, openRedis, c.URL(), func(key string) {
			key = redislock.DefaultPrefix + key
			master, _ := c.MasterOf(t, key)
			master.Kill()
			c.AwaitFailover(t, c.Slot(t, key), master)
		})
	})
	t.Run("redlock", func(t *testing.T) {
		t.Parallel()
		servers := make([]*redistest.Server, 3)
		for i := range servers {
			servers[i] = redistest.New(t, redistest.Options{})
		}
		url := "redlock://" + servers[0].Addr() + "," + servers[1].Addr() + "," + servers[2].Addr()
		testDeployment(t, openRedlock, url, func(string) { servers[2].Kill() }) // the first one has the queue
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		s := redistest.NewSentinels(t, redistest.SentinelOptions{})
		testDeployment(t, openRedis, s.URL(), func(string) {
			master := s.Master(t)
			master.Kill()
			s.AwaitFailover(t, master)
		})
	})
}

func testDeployment(t *testing.T, open func(config) (store, error), url string, failOver func(key string)) {
	s := redisStore
	s.open = open
	s.shared = func(testing.TB) string { return url }
	t.Run("queue", func(t *testing.T) { testQueue(t, openQueue(t, s, url, t.Name()+rand.Text())) })
	t.Run("all jobs in order", func(t *testing.T) { testAllJobsInOrder(t, s) })
	t.Run("failover", func(t *testing.T) {
		c := newCrew(t, s, url, "-ttl", "3s", "-job", "100ms")
		leader := c.start()
		leader.await("job 3 done")
		next := c.start()
		next.await("joins")
		failOver(c.key)
		// Who led may still lead, or not. In any case, the jobs go on.
		leader.signal(syscall.SIGKILL)
		next.await("leads")
		next.await("job .* done")
		if waiting := s.waiters(t, url, c.key); waiting != 0 {
			t.Errorf("%d wait in line for a leader that has no rival", waiting)
		}
	})
}
