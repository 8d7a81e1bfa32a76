package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"github.com/lockerkit/locker/internal/testserver/contained"
)

// orderPatience bounds what Docker may take for one order.
const orderPatience = 30 * time.Second

// box is a container with one program in it.
type box struct {
	docker *docker
	id     string
	output client.ContainerAttachResult
	wait   client.ContainerWaitResult
}

// start starts the program of a request, for a test at the socket, in a container that sees the directory shared.
func (d *docker) start(ctx context.Context, r contained.Request, socket, shared string) (*box, error) {
	image := imageOf(r.Image)
	if image == "" {
		return nil, fmt.Errorf("there is no image for %q", r.Image)
	}
	env := make(map[string]string)
	for _, variable := range r.Env {
		name, value, _ := strings.Cut(variable, "=")
		env[name] = value
	}
	d.starting <- struct{}{}
	defer func() { <-d.starting }()
	created, err := d.provider.CreateContainer(ctx, testcontainers.ContainerRequest{
		Image:      image,
		Entrypoint: []string{r.Program},
		Cmd:        r.Args,
		Env:        env,
		Labels:     map[string]string{label: socket},
		ConfigModifier: func(c *container.Config) {
			c.User, c.WorkingDir = r.User, r.Dir
			c.AttachStdout, c.AttachStderr = true, true
		},
		HostConfigModifier: func(h *container.HostConfig) {
			h.NetworkMode = "host"
			h.Binds = binds(r, shared)
			h.AutoRemove = true
			h.LogConfig.Type = "none" // the output is attached to
		},
	})
	if err != nil {
		return nil, err
	}
	b := &box{docker: d, id: created.GetContainerID()}
	if b.output, err = d.client.ContainerAttach(ctx, b.id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true}); err == nil {
		// With the context of nobody: the request lasts as long as the program.
		b.wait = d.client.ContainerWait(context.WithoutCancel(ctx), b.id,
			client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
		_, err = d.client.ContainerStart(ctx, b.id, client.ContainerStartOptions{})
	}
	if err != nil {
		b.remove()
		return nil, err
	}
	return b, nil
}

// binds are what a container sees of the host. Postgres wants a user with a name.
func binds(r contained.Request, shared string) []string {
	all := []string{shared + ":" + shared}
	if _, err := os.Stat("/etc/passwd"); err == nil && !strings.HasPrefix(r.User, "0:") {
		all = append(all, "/etc/passwd:/etc/passwd:ro")
	}
	return all
}

// copyOutput copies the output up to its end.
func (b *box) copyOutput(w io.Writer) {
	_, _ = stdcopy.StdCopy(w, w, b.output.Reader) // an error is the end, too
	b.output.Close()
}

// exitCode waits for the end of the program.
func (b *box) exitCode() (int, error) {
	select {
	case end := <-b.wait.Result:
		return int(end.StatusCode), nil
	case err := <-b.wait.Error:
		return 0, err
	}
}

// obey does what was ordered.
func (b *box) obey(o contained.Order) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), orderPatience)
	defer cancel()
	switch o.Do {
	case contained.Signal:
		_, err = b.docker.client.ContainerKill(ctx, b.id, client.ContainerKillOptions{Signal: strconv.Itoa(o.Signal)})
	case contained.Pause:
		_, err = b.docker.client.ContainerPause(ctx, b.id, client.ContainerPauseOptions{})
	case contained.Resume:
		_, err = b.docker.client.ContainerUnpause(ctx, b.id, client.ContainerUnpauseOptions{})
	default:
		err = fmt.Errorf("nobody knows how to %q", o.Do)
	}
	return err
}

// isGone reports whether an error says that a container is not there, or not running.
func isGone(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsConflict(err) }

// remove ends the program, if need be, and removes the container.
func (b *box) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), removePatience)
	defer cancel()
	if err := b.docker.removeOne(ctx, b.id); err != nil {
		fmt.Fprintf(os.Stderr, "containers: remove %.12s: %v\n", b.id, err) // once more at the end of the session
	}
}
