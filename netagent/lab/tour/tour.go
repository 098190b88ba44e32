// Package tour asks a running playground everything a user of a cluster would, with the tools they
// would use (dig, curl, nc, in the pods), and says of each answer whether it is right. What is right
// comes from the objects of the cluster, not from the programs under test.
package tour

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// Answer is what a command in the playground printed and how it ended.
type Answer struct {
	Out  string // standard output and error, trimmed
	Code int    // exit code
}

// Config says which playground to ask and how.
type Config struct {
	Store *model.Store // the playground's objects
	// Exec runs a command inside a pod ("namespace/name"), a node ("node/n1") or "outside".
	Exec    func(ctx context.Context, target string, argv ...string) Answer
	Outside Outside
	Out     io.Writer
}

// Outside is the world beyond the cluster, as the playground plays it.
type Outside struct {
	Name  string   // a DNS name that is not the cluster's
	Addrs []string // its addresses; each serves HTTP on port 80 and prints the client's address
	// Balancers are the load-balancer addresses that the outside has a route to.
	Balancers []netip.Prefix
}

// check is one question with the only right answers.
type check struct {
	group  string
	from   string
	argv   []string
	about  string                       // why the answer is right: what of the cluster it shows
	tries  int                          // ask up to so many times, until verify says done; 0 = once
	verify func(a []Answer) (v verdict) // a holds all answers so far
}

// verdict is what a check makes of its answers.
type verdict struct {
	got  string // the answer in short
	want string // what would have been right; empty = it is right
	more bool   // not wrong, but not everything was seen: ask again while tries last
}

// Run tours the playground and prints one line per question. It returns how many answers were wrong.
func Run(ctx context.Context, cfg Config) (asked, wrong int, err error) {
	w := newWorld(cfg.Store, cfg.Outside)
	if len(w.clients) == 0 {
		return 0, 0, fmt.Errorf("no pod of this playground runs: there is nothing to ask from")
	}
	group := ""
	for _, c := range w.checks() {
		if ctx.Err() != nil {
			return asked, wrong, ctx.Err()
		}
		if c.group != group {
			group = c.group
			fmt.Fprintf(cfg.Out, "\n%s\n", group)
		}
		asked++
		if !c.run(ctx, cfg) {
			wrong++
		}
	}
	fmt.Fprintf(cfg.Out, "\n%d questions, %d right, %d wrong\n", asked, asked-wrong, wrong)
	return asked, wrong, nil
}

func (c *check) run(ctx context.Context, cfg Config) (right bool) {
	var answers []Answer
	var v verdict
	for try := 0; try == 0 || (v.more && try < c.tries); try++ {
		answers = append(answers, cfg.Exec(ctx, c.from, c.argv...))
		v = c.verify(answers)
	}
	asked := fmt.Sprintf("%s$ %s", short(c.from), command(c.argv))
	if v.want == "" && !v.more {
		fmt.Fprintf(cfg.Out, "  ok     %-62s → %s   (%s)\n", asked, v.got, c.about)
		return true
	}
	if v.want == "" {
		v.want = "every backend to answer"
	}
	fmt.Fprintf(cfg.Out, "  WRONG  %-62s → %s   (%s; expected %s)\n", asked, v.got, c.about, v.want)
	return false
}

// short drops the namespace of a target: the line is read by people.
func short(target string) string {
	_, name, found := strings.Cut(target, "/")
	if !found {
		return target
	}
	return name
}

// command prints a command line as one would type it, without the options that only keep it quiet.
func command(argv []string) string {
	if argv[0] == "sh" {
		return argv[len(argv)-1]
	}
	var out []string
	for i := 0; i < len(argv); i++ {
		switch a := argv[i]; a {
		case "-sS", "+tries=2", "+timeout=2":
			continue
		case "--max-time", "--connect-timeout":
			i++
			continue
		default:
			out = append(out, a)
		}
	}
	return strings.Join(out, " ")
}
