// Command dns measures DNS servers side by side: our CoreDNS and the stock one, real programs on one
// processor that watch the same API server, while dnsperf asks from another. It prints Markdown.
//
//	go run ./test/bench/dns --cases 'service|search' --rounds 3
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/braidnet/braid/test/bench/bulkapi"
)

// options are the flags.
type options struct {
	ours, stock, bare   string
	services, endpoints int
	rounds              int
	span                time.Duration
	cases, subjects     *regexp.Regexp
	dir                 string // for what is made on the way
	nodeLocal           bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("dns", flag.ContinueOnError)
	f.StringVar(&o.ours, "coredns", "bin/coredns", "our CoreDNS")
	f.StringVar(&o.stock, "stock", "", "the peer (default: built from its module)")
	f.IntVar(&o.services, "services", 1000, "services of the cluster")
	f.IntVar(&o.endpoints, "endpoints", 10, "endpoint addresses of each service")
	f.IntVar(&o.rounds, "rounds", 3, "runs of each case, of which the median counts")
	f.DurationVar(&o.span, "span", 2*time.Second, "how long each run lasts")
	f.BoolVar(&o.nodeLocal, "node-local", false, "measure instead what a server on the asker's own node saves (as root, in a playground)")
	cases := f.String("cases", "", "regular expression of what to ask")
	which := f.String("subjects", "", "regular expression of what to measure")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.cases, err = regexp.Compile(*cases); err != nil {
		return nil, fmt.Errorf("cases: %w", err)
	}
	if o.subjects, err = regexp.Compile(*which); err != nil {
		return nil, fmt.Errorf("subjects: %w", err)
	}
	if f.NArg() > 0 || o.rounds < 1 || o.span < time.Second || o.services < 1 || o.services > 60000 || o.endpoints < 0 || o.services*o.endpoints > 4<<20 {
		return nil, errors.New("see --help; a run lasts a second or more, and a cluster has at most 60000 services")
	}
	if runtime.NumCPU() < 2 {
		return nil, errors.New("needs two processors: one for the server, one for who asks")
	}
	return o, o.programs()
}

// programs finds our program and builds the others.
func (o *options) programs() (err error) {
	if o.ours, err = filepath.Abs(o.ours); err != nil {
		return err
	}
	if _, err := os.Stat(o.ours); err != nil {
		return fmt.Errorf("our CoreDNS: %w; run `make build` first, in the repository's root", err)
	}
	if _, err := exec.LookPath("dnsperf"); err != nil {
		return fmt.Errorf("%w: install Debian's package dnsperf", err)
	}
	if o.dir, err = os.MkdirTemp("", "braid-bench-dns-"); err != nil {
		return err
	}
	o.bare = filepath.Join(o.dir, "bare")
	if err := build(".", "./test/bench/dns/bare", o.bare); err != nil {
		return err
	}
	if o.stock == "" {
		o.stock = filepath.Join(o.dir, "stock")
		return build("test/oracle", "./dns/stock", o.stock)
	}
	return nil
}

// settle is how long programs may take to give back what they needed for their start.
const settle = 3 * time.Second

func build(module, pkg, path string) error {
	out, err := exec.Command("go", "build", "-C", module, "-ldflags", "-s -w", "-o", path, pkg).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go build %s: %w: %s", pkg, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func run(ctx context.Context, o *options) (err error) {
	defer os.RemoveAll(o.dir)
	if o.nodeLocal {
		return nodeLocal(ctx, o, os.Stdout)
	}
	// This program is the API server, so it stays away from the processor of what is measured.
	if err := pinSelf(askerCPU); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	api := bulkapi.New(l)
	defer api.Close()
	if err := api.Put(cluster(o)...); err != nil {
		return err
	}
	upstream, err := launch(o, subject{name: "upstream", program: o.bare, cpu: askerCPU}, api.URL(), "")
	if err != nil {
		return err
	}
	defer upstream.stop()
	var all []*server
	defer func() {
		for _, s := range all {
			s.stop()
		}
	}()
	fmt.Println(o.facts())
	for _, s := range subjects(o) {
		if !o.subjects.MatchString(s.name) {
			continue
		}
		p, err := launch(o, s, api.URL(), upstream.addr)
		if err != nil {
			return err
		}
		all = append(all, p)
	}
	time.Sleep(settle)
	printStarts(os.Stdout, all)
	for _, c := range cases(o) {
		if !o.cases.MatchString(c.name) {
			continue
		}
		if err := c.measure(ctx, o, all, os.Stdout); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if o.cases.MatchString("flood") {
		return flood(ctx, o, all, os.Stdout)
	}
	return nil
}
