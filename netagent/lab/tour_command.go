package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/source/dir"
	"github.com/braidnet/braid/netagent/lab/tour"
)

func tourCommand() *cobra.Command {
	c := verb("tour", "ask the playground everything with dig, curl and nc, and judge the answers", "", cobra.NoArgs,
		func(c *cobra.Command, name string, _ []string) error {
			return runTour(c.Context(), name, c.OutOrStdout())
		})
	c.Long = `Asks from the pods, through the same tools a user has, and compares each answer with what the cluster's
objects say it must be. Exit code 1 when an answer is wrong. It changes nothing.`
	return c
}

func runTour(ctx context.Context, name string, out io.Writer) error {
	o, err := loadOptions(name)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("lab tour needs root to ask from the pods: run it with sudo")
	}
	if err := sayTroubles(ctx, name, out); err != nil {
		return err
	}
	store, err := readCluster(ctx, o.paths().cluster())
	if err != nil {
		return err
	}
	cfg := tour.Config{Store: store, Out: out, Exec: o.ask, Outside: tour.Outside{Name: strings.TrimSuffix(outsideZone, ".")}}
	for _, f := range o.families() {
		cfg.Outside.Addrs = append(cfg.Outside.Addrs, f.outside.String())
		cfg.Outside.Balancers = append(cfg.Outside.Balancers, f.balancers)
	}
	_, wrong, err := tour.Run(ctx, cfg)
	if err != nil {
		return err
	}
	suggest(out, o, store)
	if wrong > 0 {
		return fmt.Errorf("%d answers were wrong: the logs of every program are in %s", wrong, o.paths().logs())
	}
	return nil
}

// sayTroubles names what is not ready before the tour meets it; without the daemon no pod would answer.
func sayTroubles(ctx context.Context, name string, out io.Writer) error {
	cl, err := newClient(name)
	if err != nil {
		return err
	}
	var s Status
	if err := cl.call(ctx, "GET", "/status", nil, &s); err != nil {
		return err
	}
	for _, line := range s.troubles() {
		fmt.Fprintf(out, "not ready: %s\n", line)
	}
	return nil
}

// readCluster reads the playground's objects as the agents do.
func readCluster(ctx context.Context, folder string) (*model.Store, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store := model.NewStore()
	ended := make(chan error, 1)
	go func() { ended <- dir.Run(ctx, folder, store, dir.Options{Logger: slog.New(slog.DiscardHandler)}) }()
	select {
	case err := <-ended:
		return nil, err
	case <-store.Synced():
		cancel()
		<-ended
		return store, nil
	}
}

// ask runs a command in the playground as `lab exec` does for a user.
func (o *Options) ask(ctx context.Context, target string, argv ...string) tour.Answer {
	self, err := os.Executable()
	if err != nil {
		return tour.Answer{Out: err.Error(), Code: 1}
	}
	cmd := exec.CommandContext(ctx, self, append([]string{"lab", "exec", "--name", o.Name, target, "--"}, argv...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	a := tour.Answer{Out: strings.TrimSpace(out.String())}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		a.Code = exit.ExitCode()
	case err != nil:
		return tour.Answer{Out: err.Error(), Code: 1}
	}
	return a
}

// suggest prints commands to go on with, made for what runs here.
func suggest(out io.Writer, o *Options, store *model.Store) {
	self := "bin/netagent lab"
	flag := ""
	if o.Name != defaultName {
		flag = " --name " + o.Name
	}
	var pod *model.Pod
	for _, x := range store.List(model.KindPod) {
		if p := x.(*model.Pod); !p.HostNetwork && p.Phase == model.PhaseRunning {
			pod = p
			break
		}
	}
	var service *model.Service
	for _, x := range store.List(model.KindService) {
		if s := x.(*model.Service); s.Namespace != "kube-system" && len(s.ClusterIPs) > 0 && len(s.Ports) > 0 && s.Ports[0].Protocol == model.TCP {
			service = s
			break
		}
	}
	fmt.Fprintf(out, "\nThe playground stays up. Try:\n  %s pods%s\n", self, flag)
	if pod != nil && service != nil {
		exec := fmt.Sprintf("%s exec%s -n %s %s --", self, flag, pod.Namespace, pod.Name)
		fmt.Fprintf(out, "  %s dig +search %s.%s\n  %s curl -s http://%s.%s:%d/\n", exec, service.Name, service.Namespace,
			exec, service.Name, service.Namespace, service.Ports[0].Port)
	}
	fmt.Fprintf(out, "  %s exec%s node/n1 -- netagent status\n  %s exec%s node/n1 -- nft list table ip braid\n", self, flag, self, flag)
}
