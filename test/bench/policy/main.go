// Command policy measures how NetworkPolicies are enforced: our node agent, and a peer beside it, real programs on a
// real kernel that watch the same API server. It prints Markdown.
//
// What counts is packets: a change is in force when a connection is refused that was not, or made that was not.
//
//	go run ./test/bench/policy --policies 100 --subjects braid
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	netagent       string
	peers          map[string]string // programs by the names of subjects
	policies       []int
	pods, local    int
	trials, rounds int
	rate           int
	limit          time.Duration
	churnFor       time.Duration
	budget         time.Duration
	subjects       *regexp.Regexp
	parts          *regexp.Regexp
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if err == nil {
		err = measure(ctx, o)
	}
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{peers: map[string]string{}}
	f := flag.NewFlagSet("policy", flag.ContinueOnError)
	policies := f.String("policies", "100,1000", "numbers of policies in the cluster, separated by commas")
	f.IntVar(&o.pods, "pods", 5000, "pods of the cluster")
	f.IntVar(&o.local, "local", 100, "of them, pods of the node")
	f.IntVar(&o.trials, "trials", 50, "changes of each kind that are timed")
	f.IntVar(&o.rounds, "rounds", 3000, "packets, and connections, that are timed in each world")
	f.IntVar(&o.rate, "churn", 50, "pods of other nodes that come or go in a second")
	f.DurationVar(&o.churnFor, "churn-for", 20*time.Second, "how long they do, at least")
	f.DurationVar(&o.budget, "budget", time.Minute, "time after which no more changes are made than there were, but for three of each kind")
	f.DurationVar(&o.limit, "limit", time.Minute, "how long a change may take")
	which := f.String("subjects", "", "regular expression of what to measure: "+strings.Join(names(), ", "))
	parts := f.String("parts", "", "regular expression of what about them: changes, cost, large")
	f.StringVar(&o.netagent, "netagent", "bin/netagent", "our agent")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag; see --help", f.Arg(0))
	}
	for one := range strings.SplitSeq(*policies, ",") {
		n, err := strconv.Atoi(one)
		if err != nil || n < 0 || n > 100_000 {
			return nil, fmt.Errorf("policies: %q: use numbers such as 100,1000", one)
		}
		o.policies = append(o.policies, n)
	}
	if o.pods < 1 || o.local < 0 || o.local > min(o.pods, 250) || o.trials < 1 || o.rounds < 1 || o.rate < 1 {
		return nil, errors.New("numbers are at least 1, and local pods at most 250")
	}
	var err, wrong error
	o.subjects, err = regexp.Compile(*which)
	o.parts, wrong = regexp.Compile(*parts)
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root for network namespaces")
	}
	return o, o.programs()
}

// programs finds our program, and builds the peers that are wanted and that the kernel can run.
func (o *options) programs() (err error) {
	if o.netagent, err = filepath.Abs(o.netagent); err != nil {
		return err
	}
	if _, err := os.Stat(o.netagent); err != nil {
		return fmt.Errorf("our agent: %w; run `make build` first, in the repository's root", err)
	}
	for _, s := range subjects(o) {
		if !s.peer || !o.subjects.MatchString(s.name) || s.kernel() != nil {
			continue
		}
		// Among the programs of the real cluster, which are kept under their versions.
		cmd := exec.Command("go", "run", "-C", "test/cluster", ".", "build", s.name)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("build %s: %w", s.name, err)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		o.peers[s.name] = lines[len(lines)-1]
	}
	return nil
}
