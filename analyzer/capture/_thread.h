/* SPDX-License-Identifier: Apache-2.0 */
/* Rule: how a thread begins that knows nothing of Python. What it does is for who asks. */
#ifndef RKE2_FLOWS_THREAD_H
#define RKE2_FLOWS_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

/* Signals are for other threads. Not 0 where no thread is to be had. */
static int thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    int failed;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

#endif
