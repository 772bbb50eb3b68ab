/* sweep_report.c - what a sweep says: rank 0 of the world takes the results of all groups, prints
 * a line for each, keeps summary.csv up to date and prints the table at the end. */
#include "sweep.h"

#include <math.h>
#include <string.h>

enum { TAG_RESULT = 1 }; /* on the world's communicator, where nothing else is sent meanwhile */

void sweep_report_start(const sweep *sw)
{
    int size = sw->world->size, least = size / sw->ngroups,
        most = (size + sw->ngroups - 1) / sw->ngroups;
    fl_text t = {0};

    for (int a = 0; a < sw->plan.naxes; a++) {
        fl_text_add(&t, "%s%s (%d)", a > 0 ? " x " : "", sw->plan.axis[a].key, sw->plan.axis[a].n);
    }
    fl_log(sw->world, "sweep     %d run%s: %s", sw->plan.nruns, sw->plan.nruns > 1 ? "s" : "", t.s);
    t.n = 0;
    fl_text_add(&t, least < most ? "%d to %d" : "%d", least, most);
    fl_log(sw->world, "groups    %d of %s rank(s), each with a run at a time", sw->ngroups, t.s);
    fl_log(sw->world, "results   %s/summary.csv, and a folder for each run beside it", sw->out);
    for (int i = 0; i < sw->plan.nruns && sw->args->dry_run; i++) {
        t.n = 0;
        sweep_name(&sw->plan, i, &t);
        fl_log(sw->world, "run %d/%d  group %d  %s/%s", i + 1, sw->plan.nruns, i % sw->ngroups,
            sw->out, t.s);
    }
    fl_text_free(&t);
}

static void write_summary(sweep *sw)
{
    fl_text csv = {0}, path = {0};

    fl_text_add(&path, "%s/summary.csv", sw->out);
    sweep_csv(&sw->plan, sw->result, sw->args->requeue_code, &csv);
    fl_err err = fl_file_write(path.s, csv.s, csv.n);

    if (err != FL_OK) {
        fl_warn(sw->world, "%s", fl_error_text());
        fl_error_clear(); /* it belongs to no run; the last attempt counts */
    }
    sw->err = err;
    fl_text_free(&csv);
    fl_text_free(&path);
}

static void say(const sweep *sw, const sweep_result *r)
{
    fl_text label = {0};
    char eval[48] = "";

    sweep_label(&sw->plan, r->run, &label);
    if (!isnan(r->x[SWEEP_eval_loss])) {
        snprintf(eval, sizeof eval, ", eval %.5g", r->x[SWEEP_eval_loss]);
    }
    if (r->status == SWEEP_DONE && r->before) {
        fl_log(sw->world, "run %d/%d %s was done already%s", r->run + 1, sw->plan.nruns, label.s,
            eval);
    } else if (r->status == SWEEP_DONE) {
        fl_log(sw->world, "run %d/%d %s done in %.3g s%s", r->run + 1, sw->plan.nruns, label.s,
            r->seconds, eval);
    } else if (r->status == SWEEP_FAILED) {
        fl_log(sw->world, "run %d/%d %s failed after %.3g s, exit code %d: %s", r->run + 1,
            sw->plan.nruns, label.s, r->seconds, fl_exit_code(r->err), r->error);
    } else if (r->begun) {
        fl_log(sw->world, "run %d/%d %s stopped after round %d of %d", r->run + 1, sw->plan.nruns,
            label.s, FL_MAX(r->rounds, 0), r->planned);
    }
    fl_text_free(&label);
}

static void book(sweep *sw, const sweep_result *r)
{
    FL_REQUIRE(r->run >= 0 && r->run < sw->plan.nruns);
    FL_REQUIRE(sw->result[r->run].status == SWEEP_WAITS);
    sw->result[r->run] = *r;
    sw->nresults++;
    say(sw, r);
}

void sweep_receive(sweep *sw)
{
    int there = 1, before = sw->nresults;

    while (there) {
        MPI_Status status;

        MPI_Iprobe(MPI_ANY_SOURCE, TAG_RESULT, sw->world->world, &there, &status);
        if (there) {
            sweep_result r;

            MPI_Recv(&r, sizeof r, MPI_BYTE, status.MPI_SOURCE, TAG_RESULT, sw->world->world,
                MPI_STATUS_IGNORE);
            book(sw, &r);
        }
    }
    if (sw->nresults > before) {
        write_summary(sw);
    }
}

void sweep_hand_in(sweep *sw, const sweep_result *r)
{
    if (sw->world->rank == 0) {
        book(sw, r);
        write_summary(sw);
        sweep_receive(sw);
    } else {
        MPI_Send(r, sizeof *r, MPI_BYTE, 0, TAG_RESULT, sw->world->world);
    }
}

fl_err sweep_report_end(sweep *sw)
{
    int x[5] = {0}; /* error, a run that decides, runs not finished, runs failed, is STOP there */
    fl_text t = {0};

    if (sw->world->rank == 0) {
        char *save = NULL;

        x[4] = fl_path_exists(sw->stop);
        x[0] = (int)sweep_verdict(sw->plan.nruns, sw->result, &x[1]);
        for (int i = 0; i < sw->plan.nruns; i++) {
            x[2] += sw->result[i].status == SWEEP_STOPPED;
            x[3] += sw->result[i].status == SWEEP_FAILED;
        }
        sweep_table(&sw->plan, sw->result, sw->args->requeue_code, &t);
        fl_log(sw->world, "%s", "");
        for (char *line = strtok_r(t.s, "\n", &save); line != NULL;
             line = strtok_r(NULL, "\n", &save)) {
            fl_log(sw->world, "%s", line);
        }
        t.n = 0;
        x[0] = x[0] == FL_OK ? (int)sw->err : x[0];
    }
    fl_bcast(sw->world, 0, x, sizeof x);
    sweep_label(&sw->plan, x[1], &t);
    if (x[0] == FL_ESTOP) {
        fl_fail(FL_ESTOP,
            "sweep: %d of %d runs are not finished%s; %s%s%srun the same command again", x[2],
            sw->plan.nruns, x[3] > 0 ? ", others failed" : "", x[4] ? "remove " : "",
            x[4] ? sw->stop : "", x[4] ? " and " : "");
    } else if (x[3] > 0) {
        fl_fail((fl_err)x[0],
            "sweep: %d of %d runs failed, the first is %s; the lines above and its log.txt say why",
            x[3], sw->plan.nruns, t.s);
    } else if (x[0] != FL_OK) {
        fl_fail((fl_err)x[0], "sweep: all runs are done, but %s/summary.csv cannot be written",
            sw->out);
    }
    fl_text_free(&t);
    return (fl_err)x[0];
}
